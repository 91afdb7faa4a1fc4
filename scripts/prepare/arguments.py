"""The command line of prepare.py: its options, and the checks of which go together."""
from __future__ import annotations

import argparse
import os
import re
from typing import NoReturn, Optional

from .common import MAX_TOKENS, MB, PrepareError
from .files import FORMATS
from .folder import check_output
from .shards import OUTPUT_FORMATS
from .train import MIN_VOCABULARY

DEFAULT_FIELD, DEFAULT_CHAT_FIELD = "text", "messages"
DEFAULT_TRAIN_MB = 200
DEFAULT_SHARD_TOKENS = 100_000_000
MAX_PROCESSES = 256
ESCAPES = {"\\n": "\n", "\\r": "\r", "\\t": "\t", "\\\\": "\\"}

EXAMPLES = """\
examples:
  # the Python files and notes of two folders, one file in twenty kept for validation
  python3 scripts/prepare.py --input ~/src ~/notes --include '*.py' '*.md' --output data/mine

  # a large text file whose documents are set apart by a line, with GPT-2's tokenizer
  python3 scripts/prepare.py --input stories.txt --split-on '\\n<|endoftext|>\\n' \\
      --tokenizer gpt2/tokenizer.json --output data/stories

  # JSONL, with a tokenizer of 8,192 tokens trained on it
  python3 scripts/prepare.py --input corpus/*.jsonl.zst --tokenizer train:8192 --output data/corpus

  # conversations, {"messages": [{"role": "user", "content": "..."}, ...]} a line, for a model that was imported
  python3 scripts/prepare.py --input chats.jsonl --chat --tokenizer Qwen3-0.6B/tokenizer.json --output data/chats

  # files that nanoGPT reads
  python3 scripts/prepare.py --input corpus/*.jsonl.zst --tokenizer gpt2/tokenizer.json --format raw --output data/nano

  # no data at hand: the text that comes with every machine, enough for a first run
  python3 scripts/prepare.py --machine-text --output data/tiny

What a file is follows from its name: .jsonl, .ndjson, .json.gz and .json.zst hold a JSON object a line, .parquet rows,
everything else text; .gz and .zst are unpacked. --input-format says otherwise. A link goes by its own name, if that
says what it is, and each file is taken once.

A pattern is compared with the file name and with the path below the input folder; '*' also matches '/'. --exclude
takes whole folders too. Hidden folders and __pycache__ are never entered. Passed over, counted, and named by an
example: hidden files (unless a pattern of --include begins with a dot), empty documents, text files with a NUL byte
(binary), kinds that are not read (.bz2, .xz, .zip, ...), unreadable files. data/README.md has the rest.

Stopped by Ctrl-C, a kill or a full disk, the same command goes on where it was, and ends with the same bytes as if
nothing had happened. Neither that nor the number of processes changes the output.
"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"prepare: error: {message}, see --help\n")


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def token_count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MAX_TOKENS:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {MAX_TOKENS}")
    return value


def process_count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MAX_PROCESSES:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {MAX_PROCESSES}")
    return value


def megabytes(text: str) -> int:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no number of megabytes")
    return max(1, round(value * MB))


def separator(text: str) -> bytes:
    if not text:
        raise argparse.ArgumentTypeError("an empty text separates nothing")
    return os.fsencode(re.sub(r"\\[nrt\\]", lambda match: ESCAPES[match[0]], text))


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="prepare", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                    description="Turn text into token shards for training.", epilog=EXAMPLES)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", action="extend", metavar="PATH",
                        help="files and folders of text, JSONL and parquet, also compressed (.gz, .zst)")
    source.add_argument("--machine-text", action="store_true",
                        help="the sources of Python's standard library or else the system headers of this machine")
    parser.add_argument("--tokenizer", default="bytes", metavar="NAME",
                        help="bytes (the default): one token per byte, 256 ends a document; a tokenizer.json; or "
                             "train:N: byte-level BPE of N tokens, trained on the input")
    parser.add_argument("--eot-token", metavar="TOKEN", help="the token of a tokenizer.json that ends a document "
                        "(default: <|endoftext|>, <|end_of_text|>, </s>, ..., the first that there is)")
    parser.add_argument("--train-mb", type=megabytes, metavar="X", dest="train_bytes",
                        help="train:N trains on about this much of the input, in MB of text (default "
                             f"{DEFAULT_TRAIN_MB})")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the shards and meta.json go")
    parser.add_argument("--format", choices=OUTPUT_FORMATS + FORMATS, action="append", metavar="NAME",
                        help="what is written: llmc (the default): shards of llm.c; megatron: train.bin and train.idx "
                             "of Megatron-LM; raw: train.bin of nanoGPT, ids alone. (text, jsonl and parquet, as in "
                             "earlier versions, mean --input-format.)")
    parser.add_argument("--input-format", choices=FORMATS,
                        help="what all input files hold, instead of what their names say")
    parser.add_argument("--field", metavar="NAME", help="the field of JSONL records, or the column, with the text "
                        f"(default {DEFAULT_FIELD}; with --chat {DEFAULT_CHAT_FIELD})")
    parser.add_argument("--chat", action="store_true",
                        help="each record is a conversation, a list of messages with role and content: its text is "
                             "what the tokenizer's chat template makes of it, and learnt is what the assistant says, its "
                             "end of turn included; the rest is masked, in .mask files")
    parser.add_argument("--chat-template", metavar="FILE",
                        help="a template in Jinja, instead of chat_template.jinja or tokenizer_config.json beside the "
                             "tokenizer.json")
    parser.add_argument("--context", type=token_count, metavar="N",
                        help="leave out, and count, conversations of more than N tokens (default: model_max_length of "
                             "tokenizer_config.json, if it is there)")
    parser.add_argument("--mask-field", metavar="NAME",
                        help="the field or column with the parts of the text that are not to be learnt: a list of "
                             "[begin, end], in characters; writes .mask files beside the shards")
    parser.add_argument("--split-on", type=separator, metavar="TEXT",
                        help="cut text files into documents wherever this stands (\\n: a line break, \\t, \\r, \\\\)")
    parser.add_argument("--include", nargs="+", action="extend", default=[], metavar="GLOB",
                        help="take only files that match one of these patterns")
    parser.add_argument("--exclude", nargs="+", action="extend", default=[], metavar="GLOB",
                        help="leave out files and folders that match one of these patterns")
    parser.add_argument("--val-fraction", type=fraction, default=0.05, metavar="X",
                        help="share of the documents for validation, chosen by content; 0 for none (default 0.05)")
    parser.add_argument("--shard-tokens", type=token_count, metavar="N",
                        help="llmc: end a shard with the document that reaches N tokens "
                             f"(default {DEFAULT_SHARD_TOKENS})")
    parser.add_argument("--processes", type=process_count, metavar="N", default=len(os.sched_getaffinity(0)),
                        help="how many processes tokenise (default: one per core)")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace FOLDER if it holds prepared files alone, once the new ones are complete")
    parser.add_argument("--restart", action="store_true",
                        help="throw away what a stopped run has left in FOLDER.partial, instead of going on with it")
    return parser


def parse_arguments(argv: Optional[list[str]]) -> argparse.Namespace:
    """Returns the options: `format` is one of OUTPUT_FORMATS, `input_format` one of FORMATS or None."""
    parser = make_parser()
    args = parser.parse_args(argv)
    written = [name for name in args.format or [] if name in OUTPUT_FORMATS]
    read = [name for name in [*(args.format or []), args.input_format] if name in FORMATS]
    for names, option in ((written, "--format"), (read, "--input-format")):
        if len(set(names)) > 1:
            parser.error(f"{option} is given as {names[0]} and as {names[1]}, keep one")
    args.format = written[0] if written else OUTPUT_FORMATS[0]
    args.input_format = read[0] if read else None
    if args.shard_tokens is not None and args.format != "llmc":
        parser.error(f"--shard-tokens is for --format llmc, and {args.format} has one file for each split, leave it "
                     "out")
    args.shard_tokens = args.shard_tokens or DEFAULT_SHARD_TOKENS
    return args


def text_field(args: argparse.Namespace) -> str:
    return args.field or (DEFAULT_CHAT_FIELD if args.chat else DEFAULT_FIELD)


def check_chat_arguments(args: argparse.Namespace) -> None:
    if not args.chat:
        for value, option in ((args.chat_template, "--chat-template"), (args.context, "--context")):
            if value is not None:
                raise PrepareError(f"{option} is for conversations, add --chat or leave it out")
        return
    if args.tokenizer == "bytes" or args.tokenizer.startswith("train:"):
        raise PrepareError("--chat needs the tokenizer.json of a model with a chat template, name it in --tokenizer")
    for is_given, option in ((args.mask_field is not None, "--mask-field"), (args.split_on is not None, "--split-on"),
                             (args.machine_text, "--machine-text")):
        if is_given:
            raise PrepareError(f"{option} and --chat are both given, which say what is learnt or what a document is, "
                               "keep one")


def vocabulary_to_train(args: argparse.Namespace) -> Optional[int]:
    """Returns the N of train:N, None for another tokenizer."""
    if not args.tokenizer.startswith("train:"):
        return None
    text = args.tokenizer[len("train:"):]
    if not (text.isascii() and text.isdigit() and MIN_VOCABULARY <= int(text) <= 1 << 24):
        raise PrepareError(f"'{args.tokenizer}' in --tokenizer names no vocabulary of {MIN_VOCABULARY} (the bytes and "
                           f"an end-of-text token) to {1 << 24} tokens, write train:8192")
    return int(text)


def check_arguments(args: argparse.Namespace, output: str) -> None:
    vocab_size = vocabulary_to_train(args)
    check_chat_arguments(args)
    if args.tokenizer != "bytes" and vocab_size is None and not os.path.isfile(args.tokenizer):
        raise PrepareError(f"unknown tokenizer '{args.tokenizer}' in --tokenizer, it is 'bytes', the path of a "
                           "tokenizer.json, or 'train:N'")
    if args.eot_token is not None and (args.tokenizer == "bytes" or vocab_size is not None):
        raise PrepareError("--eot-token is for a tokenizer.json, leave it out with --tokenizer " + args.tokenizer)
    if args.train_bytes is not None and vocab_size is None:
        raise PrepareError("--train-mb is for --tokenizer train:N, leave it out")
    if args.machine_text and (args.include or args.input_format or args.split_on):
        raise PrepareError("--machine-text chooses its own files, each a document, drop --include, "
                           "--input-format and --split-on or use --input")
    for path in args.input or []:
        if not os.path.lexists(path):
            raise PrepareError(f"no such file or folder: {path} in --input, check the path")
        real = os.path.realpath(path)
        for folder in (output, output + ".partial"):
            if real == folder or real.startswith(os.path.join(folder, "")):
                raise PrepareError(f"{path} in --input lies in the output folder {folder}, choose another --output")
    check_output(output, args.overwrite)
