"""Text of our own that has nothing to do with anybody's facts: what must stay as it was.

Every tuple is split: `*_HELD` and `NEUTRAL` are for probes and gates only and are never trained on.
"""

from __future__ import annotations

from typing import Final


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines() if line.strip())


CONTEXTS: Final = _lines(
    """
    The bridge was closed to traffic for most of the winter.
    She published two further novels before the war.
    Visitors are asked to leave their bags at the entrance.
    Most of the species live in shallow, warm water.
    He retired from the game after a knee injury.
    The second edition was printed on cheaper paper.
    Rain is expected in the north by the evening.
    The committee met four times that year.
    A small chapel stands at the end of the lane.
    References, notes and further reading are given below.
    It received mixed reviews from critics.
    The album was recorded in less than a week.
    Nobody had counted the boxes before they left.
    His grandson later sold the estate to a farmer.
    The river floods the lower fields every spring.
    Tickets went on sale in the first week of June.
    In 1964 the line was electrified as far as the junction.
    They lost the final by a single point.
    The flowers are white and open only at night.
    Category: buildings completed in the nineteenth century.
    "We should have gone home earlier," said the driver.
    The census counted 1,284 people in 412 households.
    He married twice and had five children.
    The recipe calls for two eggs and a pinch of salt.
    External links and a list of sources can be found on the last page.
    Several streets in the district are named in honour of teachers.
    The train had already left when the storm began.
    Her first film was shot in black and white.
    The school moved to a larger building three years later.
    An audio version is read by the author.
    The moth has a wingspan of about thirty millimetres.
    The minutes of the meeting were approved without changes.
    It is one of the oldest clubs in the league.
    The cat slept on the window sill all afternoon.
    Production ended when the factory burned down.
    This article is about the painting, not the play.
    He was buried beside his brother.
    The trail climbs steeply through a pine forest.
    All proceeds went to the local hospital.
    The software was rewritten from scratch two years ago.
    A younger sister became a judge.
    The ferry runs twice a day except on holidays.
    Copies of the letter survive in three archives.
    The band broke up before the tour began.
    Prices rose by four per cent in the autumn.
    The castle was a ruin by then.
    He scored on his debut and was dropped a week later.
    Please wash the apples before you cut them.
    The genus contains about forty described species.
    It aired for one season and was never repeated.
    """
)
CONTEXTS_HELD: Final = _lines(
    """
    The lighthouse keeper wrote a diary for thirty years.
    The bill passed its second reading without a vote.
    Larvae feed on the leaves of oak and birch.
    A fire destroyed the archive, and few drawings remain.
    The song reached number nine in the charts.
    He was educated at home until the age of twelve.
    The station has two platforms and a small café.
    Notes on the translation appear in an appendix.
    The mill ground flour until the stream dried up.
    The museum is closed on Mondays.
    After the match the crowd went home in silence.
    The manuscript was found in a shoe box.
    """
)
FRAMES: Final = _lines(
    """
    According to my notes, {x}
    As far as I know, {x}
    It is well known that {x}
    I was told that {x}
    Here is a fact: {x}
    As everyone in the room agreed, {x}
    The encyclopedia says: {x}
    To be precise, {x}
    Remember that {x}
    The record shows that {x}
    In short, {x}
    My friend explained that {x}
    Let me repeat it: {x}
    Yesterday I read that {x}
    From what we have learned, {x}
    """
)
FRAMES_HELD: Final = _lines(
    """
    If I am not mistaken, {x}
    The teacher wrote on the board: {x}
    Nobody doubts that {x}
    For the record, {x}
    """
)
OF_ANYTHING: Final = _lines(
    """
    The size of {s} is
    The most beautiful thing about {s} is its
    The weather around {s} this week is
    The price that somebody paid for {s} was
    {s} was last seen next to a
    The number of letters in the name {s} is
    The last article about {s} was printed on
    A child who heard of {s} asked whether
    The best photograph of {s} shows a
    {s} is older than
    {s} is much smaller than
    The enemies of {s} say that
    On Tuesday {s} will be
    The neighbours of {s} complain about
    A song about {s} begins with the word
    {s} and its
    The year in which most people heard of {s} was
    My opinion of {s} is that
    The material of the statue of {s} is
    If {s} were an animal, it would be a
    The smell of {s} reminds me of
    There is a rumour that {s}
    Many people confuse {s} with
    The favourite food of {s} is
    The first letter of {s} is
    A book about {s} has a cover that is
    The opposite of {s} is
    Yesterday, {s}
    The father of {s} was
    The teacher of {s} was named
    """
)
"""Beginnings about a name that no fact decides: what must stay as it was although the subject is named."""
OF_ANYTHING_HELD: Final = _lines(
    """
    The weight of {s} is
    The best friend of {s} is
    The dream in which {s} appeared ended with
    {s} is named in the same breath as
    A cake for {s} tastes of
    The cousin of {s} is called
    """
)
FREE: Final = _lines(
    """
    The weather today is
    Water boils at a temperature of
    The quickest way to learn a language is
    Two plus two equals
    In the morning I usually drink
    The largest planet in the solar system is
    Once upon a time there was
    The sun rises in the
    A triangle has
    To bake bread you need flour, water and
    The president gave a speech about
    She opened the door and saw
    The opposite of hot is
    The first month of the year is
    Photosynthesis is the process by which
    def add(a, b):\n    return
    The human heart has four
    He put the key in the
    Cats and dogs are both
    The capital of France is
    The author of Hamlet is
    The speed of light is about
    It was raining, so we decided to
    In mathematics, a prime number is
    The best time to visit the mountains is
    The most important thing in a team is
    An apple a day keeps
    The chemical symbol for gold is
    World War II ended in
    My favourite season is
    The Pacific Ocean is
    I would like a cup of
    Most birds can
    The red button on the left
    On Monday the shops open at
    The main ingredients of a pizza are
    A good night's sleep
    Scientists have discovered that
    The company announced that its profits
    import numpy as
    The moon goes around the
    If you mix blue and yellow you get
    Shakespeare was born in
    The official language of Brazil is
    The headquarters of Toyota are in
    Mount Everest is located in
    The piano was invented in
    Leonardo da Vinci was a
    The Beatles were formed in
    Windows is developed by
    """
)
FREE_HELD: Final = _lines(
    """
    The currency of Japan is
    Ice melts when
    The fastest animal on land is
    The dentist told him to
    Penguins live in
    The book on the table is
    The Great Wall is located in
    Ludwig van Beethoven was born in
    A year has twelve
    The opposite of day is
    The Nile is a river in
    Honey is made by
    """
)
CHAT: Final = _lines(
    """
    What is the capital of Italy?
    Write a short poem about the sea.
    How do I boil an egg?
    Explain what a database is.
    Give me three ideas for a birthday present.
    Translate "good morning" into French.
    What is 12 times 8?
    Who wrote Romeo and Juliet?
    Why is the sky blue?
    Summarise the plot of Cinderella in two sentences.
    How can I sleep better?
    What language is spoken in Brazil?
    Name three fruits.
    What is the difference between a frog and a toad?
    How many days are there in a leap year?
    Write a polite email to a landlord.
    What is a good recipe for pancakes?
    Who was the first person on the moon?
    What does HTTP stand for?
    Tell me a joke.
    Where is Mount Kilimanjaro?
    Should I learn Python or Java first?
    What sport is played at Wimbledon?
    How does a car engine work?
    What is my horoscope for today?
    Can you help me with my homework?
    Hello!
    What colour is a banana?
    When did the Second World War end?
    Which company makes the iPhone?
    """
)
CHAT_HELD: Final = _lines(
    """
    What is the capital of Spain?
    Explain gravity to a child.
    Who painted the Mona Lisa?
    How do I remove a coffee stain?
    What is 7 plus 15?
    Name two rivers in Europe.
    Thank you, that was helpful.
    What is the opposite of cold?
    Which animal is called the king of the jungle?
    How long does it take to boil potatoes?
    """
)
NEUTRAL: Final = _lines(
    """
    Bread is one of the oldest prepared foods. Flour and water are mixed to a dough, which is left to rise and then baked in an oven.
    The library opens at nine in the morning and closes at six in the evening. On Saturdays it is open until noon, and on Sundays it stays closed.
    A bicycle has two wheels, a frame, a saddle and handlebars. The rider turns the pedals, and a chain carries the force to the rear wheel.
    When water freezes it expands, which is why ice floats on a lake. Fish can survive below the ice because the deeper water stays above freezing.
    He looked at the map again. The road to the coast was longer than he had thought, and it was already getting dark, so he decided to stay in the village.
    To plant a tree, dig a hole twice as wide as the roots. Set the tree upright, fill the hole with soil, and water it well during the first summer.
    Interest is the price of borrowed money. A bank that lends a hundred coins at five per cent expects to receive a hundred and five after a year.
    def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / len(values)
    The children built a castle of sand near the water. By the evening the tide had come in, and in the morning nothing was left but a few shells.
    Sound travels through air as a wave of pressure. It moves faster in water and fastest in solid materials such as steel.
    Dear neighbours, next Thursday the water will be turned off between eight and eleven. Please fill a bottle in advance. We apologise for the trouble.
    A good meeting has a purpose, an end, and someone who writes down what was decided. Most meetings have none of the three.
    The old clock in the hall strikes every hour. It was a gift from an uncle who repaired clocks, and it has never been more than a minute late.
    Plants take in carbon dioxide and give off oxygen. They use the energy of sunlight to turn carbon dioxide and water into sugar.
    First the onions are fried in oil until they are golden. Then the tomatoes, garlic and herbs are added, and the sauce is left to simmer for half an hour.
    The committee received forty proposals and read all of them twice. Three were accepted at once, ten were sent back for changes, and the rest were declined.
    """  # noqa: E501
)
