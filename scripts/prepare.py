#!/usr/bin/env python3
"""Turn text into token shards that Ingot trains on.

Documents come from text files (a file is one, or --split-on cuts it), from lines of JSONL and from rows of parquet;
with --chat they are conversations. Each becomes its tokens and one end-of-text token. They are split into train and val
by their content and written as .bin shards in llm.c's format (or in Megatron's, or nanoGPT's), with a meta.json beside
them. Needs Python 3.9 or later; a tokenizer.json, parquet, .zst and chats need the packages tokenizers, pyarrow,
zstandard and jinja2, which may be in .venv.

The package prepare/ does the work, in this order: arguments.py reads the command line, command.py runs what follows,
files.py finds the files, read.py cuts them into units of work, work.py has processes turn the units into tokens by
tokenize.py (conversations by chat_work.py), and write.py writes the tokens in order, by shards.py, into a folder of
which folder.py knows what it may hold.
"""
import sys

from prepare.command import main

if __name__ == "__main__":
    sys.exit(main())
