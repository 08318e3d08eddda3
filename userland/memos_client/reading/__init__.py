"""Reading, before anything is stored: passages, event times, names and types of what a file says.

Everything here is a pure function of text (and of what the same file said earlier), by rule, without a model, so that the same
file makes the same cubes. Order of the pages: `blocks` and `passages` (where text is cut), `markdown` (headings),
`names` (entities), `kinds` (semantic types), `turns` (all of it, for one file).
`endpoint` and `facts` are the exception: they ask a model that the caller names, and what it says is kept apart from what
was read.
"""
