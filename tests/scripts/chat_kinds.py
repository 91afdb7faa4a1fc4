"""Chat templates of the kinds that models have, and tiny tokenizers for them. What the assistant says stands between
{% generation %} tags, which most models' templates do not have: plain() leaves them out."""
from __future__ import annotations

import random
import re

# kind -> (special tokens, how the tokenizer splits words, the template)
KINDS = {
    "chatml": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "qwen", """\
{% for message in messages %}
{% if message['role'] == 'assistant' %}
{{ '<|im_start|>assistant\\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""),
    # With a system prompt of its own, and word tokens whose offsets are trimmed.
    "chatml of gpt2": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "gpt2", """\
{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}\
{% generation %}{{ message['content'] }}{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}\
{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""),
    # It has no generation prompt, which is no reason to learn the header.
    "chatml without a prompt": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "qwen", """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}\
{% generation %}{{ message['content'] }}{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}\
{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"""),
    "llama3": (["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
               "llama3", """\
{% set loop_messages = messages %}{% for message in loop_messages %}\
{% set header = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' %}\
{% if loop.index0 == 0 %}{% set header = bos_token + header %}{% endif %}{{ header }}\
{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}\
{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""),
    "mistral": (["<unk>", "<s>", "</s>"], "llama2", """\
{{ bos_token }}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""),
    # The system's words stand before the last question, so that no beginning of the conversation is one of its text.
    "mistral v3": (["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], "llama2", """\
{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}\
{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for message in rest %}\
{% if message['role'] == 'user' %}{% if loop.index0 >= rest | length - 2 and system is defined %}\
{{ '[INST] ' + system + '\\n\\n' + message['content'] + '[/INST]' }}{% else %}\
{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}\
{% else %}{% generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"""),
    # Reasoning is left out of all answers but the last, which gets an empty one where it has none.
    "qwen3": (["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"], "qwen", """\
{%- for message in messages %}{%- if message.role == 'assistant' %}\
{%- set content = message.content %}{%- set reasoning = '' %}\
{%- if '</think>' in content %}\
{%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}\
{{- '<|im_start|>assistant\\n' }}{% generation %}{%- if loop.last %}\
{{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}{%- else %}\
{{- content }}{%- endif %}{{- '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}{%- else %}\
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""),
    "zephyr": (["<unk>", "<s>", "</s>"], "llama2", """\
{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|assistant|>\\n' }}\
{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\\n' }}{% else %}\
{{ bos_token if loop.first else '' }}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""),
    "gemma": (["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "llama2", """\
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<start_of_turn>model\\n' }}\
{% generation %}{{ message['content'] | trim + '<end_of_turn>' }}{% endgeneration %}{{ '\\n' }}{% else %}\
{{ '<start_of_turn>' + message['role'] + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""),
}
TAGS = re.compile(r"\{% (?:end)?generation %\}")

# Python that runs with tokenizers: make(kind, folder) writes a tokenizer.json and tokenizer_config.json.
MAKE_TOKENIZER = r'''
import json, os
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")

def make(special, split, folder, template=None, corpus=()):
    os.makedirs(folder, exist_ok=True)
    byte_level = pre_tokenizers.ByteLevel
    options = dict(vocab_size=420 + len(special), special_tokens=special, show_progress=False)
    if split == "llama2":
        tokenizer = Tokenizer(models.BPE(unk_token=special[0], byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        options["special_tokens"] = special + [f"<0x{byte:02X}>" for byte in range(256)]
        options["vocab_size"] += 256
    else:
        tokenizer = Tokenizer(models.BPE())
        if split == "gpt2":
            tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
            tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
        else:
            pattern = LLAMA3 if split == "llama3" else LLAMA3.replace("{1,3}", "")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                                               byte_level(add_prefix_space=False, use_regex=False)])
            tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        tokenizer.decoder = decoders.ByteLevel()
        options["initial_alphabet"] = byte_level.alphabet()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(**options))
    described = json.loads(tokenizer.to_str())
    if split == "llama2":  # bytes are no special tokens
        described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in special]
    for token in described["added_tokens"]:
        token["special"] = token["content"] not in ("<think>", "</think>")
    json.dump(described, open(os.path.join(folder, "tokenizer.json"), "w"))
    names = {"bos_token": ("<s>", "<bos>", "<|begin_of_text|>"), "eos_token": ("</s>", "<eos>", "<|im_end|>", "<|eot_id|>")}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, tokens in names.items():
        config.update({name: token for token in tokens if token in special})
    if template is not None:
        config["chat_template"] = template
    json.dump(config, open(os.path.join(folder, "tokenizer_config.json"), "w"))
'''


def plain(template: str) -> str:
    return TAGS.sub("", template)


WORDS = ["Hello", "what", "is", "it", "2 + 2 = 4", "naïve", "中文", "😀", "\n", "\n\n", " ", "\t", "  x", "def f():\n    return 1",
         "<b>", "{{ x }}", "'s", "!", "[INST]", "<|im_end|>", "<|eot_id|>", "<think>", "user", "assistant"]


def random_chats(count: int, kind: str, seed: int = 5) -> list[list[dict]]:
    """Conversations of one to four questions and answers; most kinds begin with the system's words now and then."""
    chance = random.Random(seed)
    takes_system = kind not in ("mistral",)

    def content(role: str) -> str:
        words = [word for word in WORDS if role == "user" or word not in ("<|im_end|>", "<|eot_id|>", "<think>")]
        text = " ".join(chance.choice(words) for _ in range(chance.randrange(1, 8)))
        return chance.choice(["", "", " ", "\n"]) + text + chance.choice(["", "", " ", "\n"])

    chats = []
    for number in range(count):
        chat = [{"role": "system", "content": content("system")}] if takes_system and chance.random() < 0.3 else []
        for _ in range(chance.randrange(1, 5)):
            said = content("assistant")
            if kind == "qwen3":
                said = said.strip() + "."
                if chance.random() < 0.5:
                    said = f"<think>\nWell, {number}.\n</think>\n\n{said}"
            chat += [{"role": "user", "content": content("user")}, {"role": "assistant", "content": said}]
        if chance.random() < 0.1:
            chat.append({"role": "user", "content": content("user")})  # not answered
        chats.append(chat)
    return chats
