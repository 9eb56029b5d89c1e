"""Messages and files become examples of 12 tokens.

- `config`: the choices that a checkpoint records: word hash, puzzle policy, puzzle space
- `vocabulary`: words to tokens
- `conversion`: prompt and completion to an example
- `categories`: what a prompt asks for, by the words in it
- `files`: lines of messages, bare pairs and examples, read and written
- `analysis`: what a file of messages holds

May import `schemas`. Needs no torch, so that an agent's install can use it.
"""
