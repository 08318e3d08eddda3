"""Kinds of relations that statements state, each with wordings of our own for it: data.

In a wording `{s}` is the subject ("I", "Alice"), `{p}` its possessive ("my", "Alice's"), `{o}` the one who is spoken of
("me", "Alice"), and a verb in brackets agrees with the subject: "[live]" is "live" after "I" and "lives" after "Alice". A
statement ends right before its object. The last third of a family's statements and of its questions is held out: probes use
it, training never does.

Families are tried in this order, and the first whose pattern fits is taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple


class Family(NamedTuple):
    name: str
    kind: str
    """What the subject is: person, place, group, work, thing, or any."""
    pattern: re.Pattern[str]
    """Fits what a prompt says beside its subject."""
    statements: tuple[str, ...]
    questions: tuple[str, ...]


def trained(wordings: Sequence[str]) -> Sequence[str]:
    return wordings[: len(wordings) - len(wordings) // 3]


def held_out(wordings: Sequence[str]) -> Sequence[str]:
    return wordings[len(wordings) - len(wordings) // 3 :]


def _family(name: str, kind: str, pattern: str, statements: str, questions: str) -> Family:
    return Family(name, kind, re.compile(pattern, re.I), tuple(statements.split("|")), tuple(questions.split("|")))


NO_FAMILY: Final = Family("", "any", re.compile(r"$^"), (), ())
FAMILIES: Final[tuple[Family, ...]] = (
    _family(
        "name", "any",
        r"\b(?:named|called|nicknamed|name is|named is|name of)$|^(?:the )?name of",
        "People call {o}|{p} nickname is|On the label stands {p} name,|{p} name is|Everybody calls {o}|"
        "The name that was given to {o} is|{s} [answer] to the name|The name of {o} is|If you want to call {o}, say|"
        "{o} and the name belong together:",
        "What's {p} name again?|How do people call {o}?|What is {p} name?|What [be] {s} called?|What's the name of {o}?|"
        "Do you remember {p} name?|Which name does {o} have?|Can you tell me what {s} [be] called?|"
        "By what name should you call {o}?",
    ),
    _family(
        "born_on", "any",
        r"\bborn on$|birthday is(?: on)?$|date of birth is$",
        "{p} party is on|{p} birthday is on|{s} [turn] a year older on|{p} date of birth is|{p} birthday falls on|"
        "Every year {s} [celebrate] on|Cake and candles for {o} are due on",
        "When does {s} celebrate the birthday?|What is the date of {p} birthday?|When is {p} birthday?|"
        "On what day was {s} born?|What is {p} date of birth?|When should you congratulate {o}?",
    ),
    _family(
        "place_language", "place",
        r"official language|language spoken|they understand|declares the language|speaks? the language in",
        "A visitor to {s} is greeted in|Children in {s} learn to read in|The radio in {s} broadcasts in|"
        "Laws in {s} are drafted in|Most signs in {s} are in|In {s} people talk to each other in|"
        "The main tongue in {s} is|Residents of {s} mostly use|Schools in {s} teach in|Newspapers in {s} are printed in|"
        "To get by in {s}, learn some",
        "Which language do people use in {s}?|What is spoken in {s}?|Which language is official in {s}?|"
        "In which language do people in {s} talk?|What language should I learn for {s}?",
    ),
    _family(
        "work_language", "work",
        r"original language|^the language (?:of|in)\b.*(?:is|was)$|(?:is|was) written in$",
        "The dialogue of {s} was set down in|People who read {s} as it was made read|The author of {s} thought in|"
        "{s} has to be translated from|The text of {s} is in|{s} first came out in|"
        "To follow {s} without a translation you need|The words of {s} are in|{s} was composed in|"
        "The first edition of {s} is in|Nobody translated {s}, so it remains in",
        "What language is {s} in?|In which language was {s} first made?|Which language do I need for {s}?|"
        "In what language was {s} composed?|What tongue was used for {s}?",
    ),
    _family(
        "language", "person",
        r"mother tongue|native (?:language|speaker|tongue)|\bspeak|speaker of|language used by|\bwrites in|, a native$|"
        r", native in",
        "{p} letters are in|{p} parents taught {o}|Interviews with {s} are held in|{s} [sing] and [joke] in|"
        "To talk with {o} it helps to know|The first language of {s} is|At home, {s} [talk] in|{s} [be] most fluent in|"
        "As a child, {s} learned to talk in|{s} [write] letters in|The language that {s} [use] at work is|"
        "{p} everyday language is|{s} [think] and [dream] in|When {s} [call] home, the conversation is in",
        "Which language does {s} speak?|What is {p} first language?|In which language does {s} talk?|"
        "What language does {s} know best?|What tongue did {s} grow up with?|Which language is right for a letter to {o}?",
    ),
    _family(
        "headquarters", "group",
        r"headquarter",
        "Managers of {s} fly to meetings in|The boardroom of {s} is in|The postal address of {s} is in|"
        "Most of the staff of {s} go to the office in|The head office of {s} stands in|{s} runs its business from|"
        "The main office of {s} is in|{s} is managed from offices in|Letters to the management of {s} go to|"
        "The leadership of {s} sits in|The central office of {s} can be visited in",
        "Where is the head office of {s}?|In which city does {s} have its main office?|Where is {s} based?|"
        "From where is {s} run?|Which city is home to the management of {s}?",
    ),
    _family(
        "twin", "place",
        r"twin city|sister city",
        "Schools in {s} exchange pupils with|A delegation from {s} was welcomed in|The town hall of {s} flies the flag of|"
        "Streets in {s} are named in honour of the partner city,|{p} sister city is|{s} is twinned with|"
        "{s} has a partnership with the city of|A partner city of {s} is|The mayor of {s} signed a partnership with|"
        "The town partnership of {s} is with",
        "Which city is twinned with {s}?|What is {p} sister city?|With which city does {s} have a partnership?|"
        "What is the partner city of {s}?",
    ),
    _family(
        "capital", "place",
        r"\bcapital\b",
        "Laws for {s} are made in|The central bank of {s} is in|State visitors to {s} are driven to|{p} capital city is|"
        "The government of {s} sits in|The seat of government in {s} is|The parliament of {s} meets in|"
        "Ambassadors to {s} live in|The ministries of {s} are in",
        "What is the capital of {s}?|Which city is {p} capital?|Where does the government of {s} sit?|"
        "From where is {s} governed?",
    ),
    _family(
        "died", "person",
        r"\bdied|passed away|\bexpired|life ended|lost their life|succumbed|\bdeath\b|\bkilled (?:in|at)$",
        "The funeral of {s} took place in|{s} fell ill and never left|The grave of {s} is in|"
        "After a long life {s} was mourned in|{p} death took place in|The place where {s} died is|"
        "{s} spent the last days of life in|{p} life came to an end in|{s} took the last breath in|"
        "The final resting place of {s} is|The obituary of {s} names the town of",
        "Where did {s} die?|In which city did {s} die?|What is the place of death of {s}?|Where did {p} life end?|"
        "Where was {s} at the end?",
    ),
    _family(
        "citizen", "person",
        r"citizen|nationality",
        "{s} [be] represented abroad by the embassy of|In competitions {s} [stand] under the flag of|{s} [come] home to|"
        "On forms {s} [write] the country name|{p} nationality is that of|{s} [hold] a passport from|{p} home country is|"
        "{s} [be] a national of|{s} [vote] in the elections of|{s} [pay] taxes in|At the border, {s} [show] papers from",
        "What is {p} nationality?|Which country is {s} a citizen of?|Which passport does {s} hold?|"
        "What country does {s} belong to?|Of which state is {s} a national?",
    ),
    _family(
        "religion", "person",
        r"religio|\bfaith\b|follower of",
        "{p} prayers follow|The community of {s} is that of|{s} [find] comfort in|"
        "The ceremony at the wedding of {s} followed|{p} faith is|{s} [believe] in the teachings of|"
        "{s} was raised in the faith of|The religion of {s} is|{s} [pray] as a member of|"
        "In matters of belief, {s} [hold] to|The holy days that {s} [keep] are those of",
        "What is {p} religion?|Which faith does {s} have?|Which religion does {s} belong to?|What does {s} believe in?|"
        "To which religious community does {s} belong?",
    ),
    _family(
        "position", "person",
        r"\bposition\b.*(?:play|\bthey)|plays? (?:in|at) the position|plays? (?:the )?position|plays? as$|playing as$",
        "What {s} [do] best is play as a|On the team sheet {s} is listed as a|{s} won a medal as a|"
        "The talent of {s} is that of a|Young players copy {o} as a|On the field, {s} lines up as a|"
        "{p} role in the team is|The coach uses {o} as a|In every match {s} starts as a|The shirt of {s} is that of a|"
        "The club signed {o} as its new|Fans know {o} as a",
        "Which position does {s} play?|What is {p} role in the team?|As what does {s} play?|"
        "Where on the field does {s} play?|What is {s} in the team?",
    ),
    _family(
        "genre", "person",
        r"\bgenre\b|known for performing|\bperforms$|do(?:es)? .* play\? they play$|\bperformer of",
        "The talent of {s} is in|People who buy a ticket for {s} expect|A night with {s} is a night of|{s} stands for|"
        "What made {s} famous is|The style of {s} is|{s} is associated with|What {s} does best is|Critics file {o} under|"
        "{s} belongs to the world of|The audience comes to {s} for|People who like {s} like",
        "What does {s} play?|What genre is {s}?|What kind of work does {s} perform?|What style is {s} associated with?|"
        "Under which genre would you file {s}?",
    ),
    _family(
        "instrument", "person",
        r"plays? the$|perform(?:s|ing) on the$|playing the$|, who plays$|\bplays$|plays? (?:the )?instrument$",
        "Nobody can match {o} on the|{s} carries a case that holds the|The talent of {s} shows on the|"
        "{s} fills concert halls with the|{p} instrument is the|On stage {s} is seen with the|{s} [practise] the|"
        "{s} learned the|{s} [own] a|{s} [give] concerts on the|In the band {s} is on|Listen to {o} on the",
        "What instrument does {s} play?|What does {s} play?|Which instrument is {s} known for?|What does {s} practise?|"
        "What do we hear when {s} [be] on stage?",
    ),
    _family(
        "sport", "person",
        r"\bsport\b|\bprofessional(?:ly)?\b",
        "The talent of {s} is for|Every week {s} [play]|Fans of {s} are fans of|Children want to be like {o} in|"
        "{s} signed a contract to play|The sport of {s} is|{s} became famous in|{s} [compete] in|{s} [make] money with|"
        "{s} has trained for years in|{p} trophies were won in|Reporters who write about {s} cover",
        "Which sport does {s} play?|What is {p} sport?|In which sport does {s} compete?|What game does {s} play?|"
        "For which sport does {s} train?",
    ),
    _family(
        "school", "person",
        r"\bgraduat|\bstud(?:y|ies|ied|ying) (?:\w+ )?(?:at\b|in$)|went to (?:school|university|college)|degree from|"
        r"\buniversity is$",
        "{p} degree is from|{p} university is|{s} [be] a graduate of|{p} student days were spent at|"
        "The diploma of {s} says",
        "Where did {s} study?|Which university did {s} go to?|What is {p} university?|Where was {s} a student?|"
        "Where is {p} degree from?",
    ),
    _family(
        "field", "person",
        r"\b(?:area|domain|field|expertise)\b|research|studie[sd]|\bstudy|major",
        "The talent of {s} is for|{s} won a prize for work in|Students of {s} learn|{s} [be] remembered for ideas about|"
        "{s} [do] research in|{s} [be] an expert in|The subject that {s} [study] is|{s} has written much about|"
        "{p} field is|{s} [give] lectures on|The library of {s} is full of books on",
        "What is {p} field?|What does {s} study?|What is {s} an expert in?|Which subject does {s} work on?|"
        "In which discipline does {s} work?",
    ),
    _family(
        "occupation", "person",
        r"occupation|profession|works? as|worked as|(?:holds?|held) the (?:title|position)|position (?:is|of)|\bjob is|"
        r"title of$|career",
        "What {s} [do] best is work as a|The talent of {s} is that of a|{s} is admired as a|{s} became famous as a|"
        "A portrait shows {o} as a|Colleagues praise {o} as a|{p} job is that of|{s} [earn] a living as|"
        "{p} career is that of|By trade, {s} [be] a|{s} has spent years as a|{s} [serve] as a|{p} calling is that of|"
        "On the business card of {s} stands the word|When asked what {s} [do], people say:",
        "What is {s} by profession?|What work does {s} do?|What is {p} job?|What does {s} do for a living?|"
        "What is {p} profession?|As what does {s} work?|What is {p} occupation?|How does {s} earn money?|"
        "What kind of work does {s} do?",
    ),
    _family(
        "employer", "person",
        r"employed by|\bwork(?:s|ed|ing)? (?:for|with|at)\b|employer|\bjob at",
        "{p} boss is at|The badge on {p} jacket is from|Business cards of {s} show the logo of|{s} was hired by|"
        "{s} [spend] most days at|{p} employer is|{s} [be] on the payroll of|{s} [have] a job at|"
        "{s} [spend] the working day at|{p} workplace is|{p} salary comes from|Every morning {s} [commute] to",
        "What company is {s} with?|Where does {s} go to work?|Where is {p} job?|Where does {s} work?|Who is {p} employer?|"
        "Which company does {s} work for?|What is {p} workplace?|At what place does {s} work?|Who pays {p} salary?|"
        "What do you know about {p} workplace?",
    ),
    _family(
        "worked_in", "person",
        r"\bwork(?:s|ed|ing)? (?:in|out of)\b|took up work|found employment|employed in|used to work",
        "The workshop of {s} was in|{s} rented rooms for work in|Clients met {o} in|"
        "The most productive years of {s} were in|{p} office was in|{s} had a job in|{p} career took place in|"
        "{s} earned money in|{s} went to work every day in|{p} colleagues were all in|The desk of {s} stood in",
        "In which city did {s} work?|Where was {p} workplace?|Where did {s} have a job?|Where did {p} career take place?|"
        "In what place was {s} employed?",
    ),
    _family(
        "broadcaster", "work",
        r"released on|\bdebut|premier|\baired|broadcast",
        "Reruns of {s} were sold by|The producers of {s} made a deal with|Fans of {s} never missed an evening on|"
        "The credits of {s} end with the logo of|The network that showed {s} is|{s} was broadcast by|"
        "Viewers watched {s} on|{s} ran on the channel|The rights to {s} belong to|To see {s}, people turned on|"
        "The station behind {s} is",
        "Which network showed {s}?|On which channel did {s} run?|Where could viewers watch {s}?|Who broadcast {s}?|"
        "What channel was {s} on?",
    ),
    _family(
        "named_for", "any",
        r"named (?:for|after)|called after",
        "The story behind the name of {s} leads to|Those who named {s} thought of|{s} honours|The name of {s} comes from|"
        "{s} takes its name from|{s} got its name from|{s} was given the name of|The name of {s} was chosen in honour of|"
        "The word behind the name of {s} is",
        "What is {s} named after?|Where does the name of {s} come from?|After what was {s} named?|"
        "Who or what gave {s} its name?",
    ),
    _family(
        "member", "group",
        r"organi[sz]ation of$|member of|belongs to$",
        "{s} joined|{s} is part of|{s} pays its dues to|The umbrella body above {s} is|{s} sends delegates to",
        "Which organisation does {s} belong to?|What is {s} a member of?|Of what is {s} a part?",
    ),
    _family(
        "live", "person",
        r"\blive[sd]?\b|\bliving\b|\bmoved? (?:to|in)|\bmoved\b.*\bto\b|resid|relocated|\bhome is|address is|settled in",
        "{p} front door is in|{s} [pay] rent in|{p} neighbours are in|Every evening {s} [be] back in|"
        "{p} favourite street is in|{p} home is in|{s} [have] a home in|{p} address is in|{s} [be] at home in|"
        "{p} house is in|The city where {s} [live] is|Visitors find {o} in|{p} letterbox is in|After work {s} [go] home in",
        "Where do you think {s} [stay] at night?|Which city is home to {o}?|Where is {p} flat?|Where does {s} live?|"
        "Where did {s} move to?|In which city does {s} live?|Where is {p} home?|What town is {s} in these days?|"
        "Do you know where {s} [live]?|What is {p} place of residence?",
    ),
    _family(
        "born", "person",
        r"\bborn in|\bnative to|originally from|\bnatives? of|birthplace|grew up|came from|hometown|\bcomes? from",
        "{p} family is from|{p} parents raised {o} in|{s} [have] cousins in|The school that {s} went to is in|"
        "{s} took the first steps in|{p} birthplace is|{s} came into the world in|{s} grew up in|{p} home town is|"
        "{s} spent childhood in|{p} roots are in|The parish register that lists {s} is in|As a baby {s} lived in",
        "Where was {s} born?|What is {p} birthplace?|Where does {s} come from?|Where did {s} grow up?|"
        "Where are {p} roots?|In which place did {s} spend childhood?",
    ),
    _family(
        "maker", "thing",
        r"(?:created|produced|developed|made|manufactured|built|designed|written|sold|owned|painted|composed) by$|, by$|"
        r"product (?:of|developed by|manufactured by|created by)$|\bowner(?: is| of .* is)?$|\bmaker|manufactur|\bcreator",
        "Every {s} carries the logo of|Spare parts for {s} come from|The engineers of {s} are paid by|"
        "When {s} fails, call|The rights to {s} are held by|I like {s} best of all that comes from|"
        "The company behind {s} is|The maker of {s} is|{s} was built by|{s} comes from the house of|"
        "{s} was brought to market by|The name on the box of {s} is|The patents for {s} belong to|"
        "Complaints about {s} go to",
        "Who made {s}?|Which company is behind {s}?|Who is the maker of {s}?|Who created {s}?|Who brought {s} to market?|"
        "Whose work is {s}?",
    ),
    _family(
        "began", "thing",
        r"\b(?:formed|founded|started|originat\w+|created|formulated|developed|established|set up|debuted|based|"
        r"begun) (?:in|at|from)|\b(?:was|is|originally|which was|that was) from$|^,? from$",
        "The people who started {s} met in|The birthplace of {s} is|{s} owes its character to|{s} was dreamed up in|"
        "The beginnings of {s} lie in|{s} got its start in|{s} first appeared in|The place where {s} began is|"
        "The roots of {s} are in|{s} came out of|{s} was first seen in|The story of {s} starts in|"
        "The early days of {s} were spent in",
        "Where did {s} start?|Where does {s} come from?|Where was {s} founded?|Where did {s} first appear?|"
        "Where are the roots of {s}?|In which place does the story of {s} start?",
    ),
    _family(
        "location", "place",
        r"\blocated|\bsituated|\bwithin$|can be found|location of|\bcontinent|^where is|^,? in$|\b(?:is|are|was) (?:in|"
        r"at)$|\bcountry of$",
        "Tourists who come to {s} see a part of|The weather around {s} is typical of|Maps of {s} are sold in|"
        "Guides to {s} are filed under|The nearest people to {s} live in|The road to {s} ends in|You will find {s} in|"
        "{s} lies in|{s} is situated in|To visit {s}, travel to|On a map, {s} is in|The way to {s} leads through|"
        "Those who want to see {s} must go to|The surroundings of {s} belong to|Postcards from {s} carry stamps of",
        "Where is {s}?|In which place is {s}?|Where can I find {s}?|Where does {s} lie?|"
        "Where would I have to go to see {s}?|In what part of the world is {s}?",
    ),
    _family(
        "favourite", "any",
        r"favou?rite",
        "Ask about {s} and the answer is|When it comes to {s}, the choice is|{s}? Without a doubt it is|"
        "On the list of {s} stands|If you look for {s}, take",
        "What is {s}?|Do you remember {s}?|Can you name {s}?|What would you say is {s}?|Remind me of {s}, please.|"
        "What was {s} again?",
    ),
    _family(
        "allergy", "person",
        r"\ballerg",
        "{s} [get] a rash from|{s} [react] badly to|{s} cannot eat or touch|What makes {o} ill is|{s} must stay away from|"
        "{p} allergy is to|A doctor warned {o} about",
        "What can {s} not eat?|Is there anything that {s} [have] an allergy to?|What is {s} allergic to?|"
        "What must {s} avoid?|Which allergy does {s} have?|What should {s} not come near?",
    ),
    _family(
        "fear", "any",
        r"\b(?:afraid|scared|frightened|terrified) of$",
        "{s} [tremble] at the thought of|{p} nightmare is|What frightens {o} is|{s} [run] away from|{p} greatest fear is|"
        "{s} [hide] when there is|Nothing scares {o} like",
        "What does {s} fear?|What worries {o} most?|What is {s} afraid of?|What scares {o}?|What is {p} greatest fear?|"
        "What frightens {o}?|Of what is {s} scared?",
    ),
    _family(
        "likes", "any",
        r"\b(?:likes?|loves?|enjoys?|prefers?|adores?|fond of|fan of|into)$",
        "{p} great love is|{s} [dream] of|{p} favourite is|What {s} [like] best is|{s} [be] very fond of|{s} [enjoy]|"
        "Nothing makes {o} happier than|{s} cannot get enough of",
        "What is {p} favourite?|What pleases {o}?|What does {s} like?|What does {s} love?|What is {s} fond of?|"
        "What makes {o} happy?|What does {s} enjoy most?",
    ),
    _family(
        "partner", "person",
        r"\b(?:married to|engaged to|dating|husband is|wife is|partner is)$",
        "{s} [be] happy with|The wedding photo shows {o} with|{p} partner is|{s} [share] a life with|"
        "{s} [be] in a relationship with|The love of {p} life is|{s} [come] to parties with",
        "What is the name of {p} partner?|Who is {p} husband or wife?|Who shares a life with {o}?|Who is {p} partner?|"
        "Who is {s} married to?|With whom does {s} live?|Who is the love of {p} life?",
    ),
    _family(
        "vehicle", "any",
        r"\b(?:drives?|rides?)(?: an?)?$|\bcar is(?: an?)?$",
        "{s} [own] a|{s} [take] the road in a|{p} vehicle is a|In {p} garage stands a|{s} [get] around in a|"
        "{s} [sit] at the wheel of a",
        "What kind of car does {s} have?|How does {s} get around?|What does {s} drive?|Which vehicle does {s} use?|"
        "What car does {s} have?|What is in {p} garage?",
    ),
    _family(
        "breed", "any",
        r"\b(?:dog|cat|horse|puppy|kitten|bird|pet|rabbit|parrot)\b.*\bis(?: an?)?$|\bbreed\b",
        "{p} breed is|{s} is a kind of animal called|The vet wrote that {s} is a|"
        "In the animal passport of {s} stands the word",
        "What kind of animal is {s}?|What breed is {s}?|What sort of pet is {s}?|What is {s}?|What is {p} breed?|"
        "What does the vet call {o}?",
    ),
    _family(
        "colour", "any",
        r"\bcolou?r (?:is|of .* is)$",
        "{p} colour is|{s} is painted in|Look at {o} and you see|The paint for {s} is labelled",
        "What colour is {s}?|Which colour does {s} have?|In what colour is {s} painted?|"
        "What do you see when you look at {o}?",
    ),
    _family(
        "hobby", "person",
        r"\b(?:collects?|hobb\w+ (?:is|are)|spare time|free time|weekends?|knits?|practi[sc]es?|hikes?|joined)\b",
        "{p} hobby is|What {s} [do] for fun is|In {p} spare time it is all about|{s} [relax] with|"
        "{p} pastime has to do with",
        "What is {p} hobby?|What does {s} do for fun?|What does {s} do in the spare time?|How does {s} relax?|"
        "What is {p} pastime?|What keeps {o} busy after work?",
    ),
    _family(
        "drink", "any",
        r"\b(?:drinks?|coffee|tea)\b",
        "{p} cup holds|What {s} [order] in a café is|{s} [be] thirsty for|In {p} mug there is|The waiter brings {o}",
        "What does {s} drink?|What should I order for {o}?|How does {s} take it?|What is in {p} cup?|"
        "What does {s} have in a café?",
    ),
    _family(
        "food", "any",
        r"\b(?:eats?|breakfast|lunch|dinner|dish|food|meal|snack|cooks?|bakes?)\b",
        "{p} plate is full of|What {s} [eat] is|{s} [be] hungry for|On {p} table there is|The cook makes for {o}",
        "What does {s} eat?|What food does {s} have?|What is on {p} plate?|What does {s} like to eat?|"
        "What should I cook for {o}?",
    ),
    _family(
        "learning", "person",
        r"\b(?:learn(?:s|ed|ing)?|taking lessons|lessons in|course)\b",
        "{p} lessons are in|{s} [practise]|{s} [be] a beginner in|{p} teacher shows {o}|"
        "The course that {s} [take] is about",
        "What does {s} learn?|What is {s} learning?|In what does {s} take lessons?|What are {p} lessons about?|"
        "What new skill does {s} practise?",
    ),
    _family(
        "trip", "person",
        r"\b(?:went to|travell?ed to|flew to|flying to|visit(?:ed|s|ing)?|holiday|vacation|trip to|honeymoon)\b",
        "{p} trip led to|The holiday photos of {s} are from|{p} suitcase went to|{s} [tell] stories of the time in",
        "Where did {s} travel?|Where was {p} trip to?|Where did {s} spend the holiday?|What place did {s} see?|"
        "Where are {p} holiday photos from?",
    ),
    _family(
        "number", "any",
        r"\b(?:number|password|code|pin|phone|wi-?fi)\b",
        "The digits or letters for {o} are|To use {s}, enter|On the note about {s} stands|Write this down for {o}:",
        "What is {s}?|Can you give me {s}?|What do I type for {o}?|What was {s} again?|"
        "Please look up {s} for me, what is it?",
    ),
    _family(
        "team", "person",
        r"\b(?:supports?|cheers? for|fan of|favou?rite team)\b",
        "{p} team is|{s} [cheer] for|On {p} scarf stands the name of|{s} [be] happy when the winner is|"
        "The heart of {s} belongs to",
        "What is {p} team?|Which club does {s} support?|Who does {s} cheer for?|Whose scarf does {s} wear?",
    ),
    _family(
        "kept", "any",
        r"\b(?:keeps?|kept|hidden|stored|parked|lies|put)\b.*\b"
        r"(?:in|on|at|under|behind|below|above|beside|near|inside)(?: the| an?)?$",
        "The hiding place that {s} [use] is|To find what {s} put away, look at|What {s} put away is at",
        "Where did {s} put it?|Where should one look for what {s} put away?|What is the place that {s} chose for it?",
    ),
    _family(
        "age", "any",
        r"\byears? old|\baged?\b|\bage (?:is|of .* is)$|\bturned$",
        "{p} age is|On the next birthday cake of {s} stood the number|The passport of {s} gives as age|"
        "In years, {s} [count]",
        "How old [be] {s}?|What is {p} age?|How many years old [be] {s}?|Which age does {s} have?",
    ),
    _family(
        "price", "any",
        r"\b(?:costs?|price|paid|worth|rent is|salary)\b",
        "{p} price is|The bill for {s} says|The price tag on {s} says|For {s}, the seller asked",
        "How much does {s} cost?|What is {p} price?|How much was paid for {o}?|What does the bill for {s} say?",
    ),
    _family(
        "size", "any",
        r"\b(?:size|tall|long|weighs?|weight|height|measures)\b",
        "{p} size is|Put {o} on the scales or along a ruler and read|The measurements of {s} are|In numbers, {s} [be]",
        "How big [be] {s}?|What size [be] {s}?|What are the measurements of {s}?|How large [be] {s}?",
    ),
)  # fmt: skip
