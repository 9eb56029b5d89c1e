"""Conversion of messages and files to examples, which are sequences of tokens.

- `config`: the choices that a checkpoint records: word hash, puzzle policy, puzzle space
- `vocabulary`: words to tokens
- `conversion`: messages and bare pairs to examples
- `texts`: accepted texts as hashes, and the check of a completion against them
- `changes`: single changes of a completion, as an agent that drifts makes them
- `categories`: the category of a prompt, guessed from its words
- `files`: JSONL files of messages, bare pairs and examples, read and written
- `analysis`: counts, lengths and distributions of a file

May import `schemas`. Needs no torch, so that an agent's install can use it.
"""
