"""A model trained by Ingot, for Hugging Face transformers: what no class of the library computes, such as ALiBi.

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

A pre-norm decoder: RMSNorm, grouped-query attention, SwiGLU. Positions are ALiBi, RoPE or none; optionally queries and
keys are normed, and projected with a bias. It is written for reading: plain PyTorch, which forms all attention scores.
Norms, scores and softmax are computed in fp32, and each result is rounded once to the type of the weights.

transformers 4 hands the cache over as `past_key_values`, 5.24 and later as `cache`: both names are taken and given.

Shapes: B sequences, T tokens read now, S tokens with those in the cache, C width, NH query heads, NKV key/value heads,
HS head size.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class IngotConfig(PretrainedConfig):
    model_type = "ingot"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    def __init__(self, vocab_size=50257, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
                 num_attention_heads=12, num_key_value_heads=None, head_dim=None, max_position_embeddings=1024,
                 position_embedding="alibi", rope_parameters=None, qk_norm=False, qkv_bias=False, rms_norm_eps=1e-5,
                 initializer_range=0.02, use_cache=True, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        if position_embedding not in ("alibi", "rope", "none"):
            raise ValueError(f"position_embedding is {position_embedding!r}: it must be alibi, rope or none")
        self.position_embedding = position_embedding
        self.rope_parameters = rope_parameters
        self.qk_norm = qk_norm
        self.qkv_bias = qkv_bias
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        super().__init__(**kwargs)


# What this version of transformers calls the cache in outputs. Those with the new name answer to the old one too.
CACHE_NAME = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


@dataclass
class IngotOutput(CausalLMOutputWithPast):
    """logits: (B, T, vocabulary); loss, where labels are given; the cache as `past_key_values` and as `cache`."""

    if CACHE_NAME == "past_key_values":
        @property
        def cache(self):
            return self.past_key_values


def alibi_slopes(num_heads):
    """The slopes of Press 2022. Where the heads are no power of two, every second slope of twice as many follows."""
    power = 2 ** int(math.log2(num_heads))
    exponents = [8 * (head + 1) / power for head in range(power)]
    exponents += [4 * (2 * head + 1) / power for head in range(num_heads - power)]
    return [2**-exponent for exponent in exponents]


def rope_frequencies(config):
    """The angle of each pair of a head per position, (HS / 2) in fp64: RoPE (Su 2021), scaled as in Llama 3.1."""
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    frequencies = rope["rope_theta"] ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    if kind == "default":
        return frequencies
    if kind != "llama3":
        raise ValueError(f"rope_type is {kind!r}: it must be default or llama3")
    # Frequencies that turn less than low times within the old context are divided by the factor, those that turn more
    # than high times stay, and between the two the division sets in linearly.
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / rope["factor"])


def rotate(x, cosine, sine):
    """x: (B, heads, T, HS); elements d and d + HS / 2 are a pair. cosine, sine: (B, 1, T, HS / 2) in fp32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(x.dtype)


class IngotRMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normed * self.weight.float()).to(x.dtype)


class IngotAttention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.group = config.num_attention_heads // config.num_key_value_heads
        width, query_width = config.hidden_size, config.num_attention_heads * config.head_dim
        key_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, query_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, key_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, key_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query_width, width, bias=False)
        self.q_norm = IngotRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = IngotRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x, bias, rotation, cache):
        B, T, _ = x.shape
        queries = self.q_norm(self.q_proj(x).view(B, T, -1, self.head_dim)).transpose(1, 2)  # (B, NH, T, HS)
        keys = self.k_norm(self.k_proj(x).view(B, T, -1, self.head_dim)).transpose(1, 2)  # (B, NKV, T, HS)
        values = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)
        if rotation is not None:
            queries, keys = rotate(queries, *rotation), rotate(keys, *rotation)
        if cache is not None:
            S = bias.shape[-1]
            # Before version 5 a cache of fixed size is told where they go; it also gives room that is not filled yet.
            new = torch.arange(S - T, S, device=x.device)
            keys, values = cache.update(keys, values, self.layer, {"cache_position": new})
            keys, values = keys[:, :, :S], values[:, :, :S]
        keys = keys.repeat_interleave(self.group, dim=1)  # query head h reads key head h // group
        values = values.repeat_interleave(self.group, dim=1)
        scores = queries.float() @ keys.float().transpose(2, 3) * self.head_dim**-0.5 + bias
        weights = scores.softmax(dim=-1).to(values.dtype)
        return self.o_proj((weights @ values).transpose(1, 2).reshape(B, T, -1))


class IngotMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        gate, up = self.gate_proj(x).float(), self.up_proj(x).float()
        return self.down_proj((F.silu(gate) * up).to(x.dtype))


class IngotLayer(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.input_layernorm = IngotRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = IngotAttention(config, layer)
        self.post_attention_layernorm = IngotRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = IngotMLP(config)

    def forward(self, x, bias, rotation, cache):
        x = x + self.self_attn(self.input_layernorm(x), bias, rotation, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class IngotPreTrainedModel(PreTrainedModel):
    config_class = IngotConfig
    base_model_prefix = "model"
    _no_split_modules = ["IngotLayer"]
    accepts_loss_kwargs = False


class IngotModel(IngotPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(IngotLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = IngotRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def attention_bias(self, attention_mask, past, T, device):
        """What is added to the scores, (B or 1, NH or 1, T, S) in fp32: ALiBi, and where a token does not look.

        Token i sees the tokens j <= i that attention_mask (B, S) does not leave out. Distances are differences of
        indexes, so that padding in front changes none.
        """
        S = past + T
        query, key = torch.arange(past, S, device=device)[:, None], torch.arange(S, device=device)[None, :]
        visible = (key <= query)[None, None]
        if attention_mask is not None and attention_mask.dim() == 2:
            visible = visible & attention_mask[:, None, None, :S].bool()
        elif attention_mask is not None:  # as generate() makes it for a cache of fixed size: (B, 1, T, S)
            attention_mask = attention_mask[..., :S]
            visible = visible & (attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0)
        bias = torch.zeros(1, 1, T, S, device=device)
        if self.config.position_embedding == "alibi":
            slopes = torch.tensor(alibi_slopes(self.config.num_attention_heads), device=device)
            bias = -slopes[None, :, None, None] * (query - key).abs()
        # Not minus infinity: a token of padding sees nothing, and its softmax would be NaN.
        return bias.masked_fill(~visible, torch.finfo(torch.float32).min)

    def rotation(self, position_ids):
        """Cosines and sines, (B, 1, T, HS / 2) in fp32; None without RoPE."""
        if self.config.position_embedding != "rope":
            return None
        angles = position_ids[:, None, :, None] * rope_frequencies(self.config).to(position_ids.device)
        return angles.cos().float(), angles.sin().float()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, cache=None,
                inputs_embeds=None, use_cache=None, output_hidden_states=None, output_attentions=None,
                return_dict=None, **kwargs):
        # transformers 4 gives cache_position, too, which the length of the cache says already.
        if not set(kwargs) <= {"cache_position"}:
            raise TypeError(f"this model does not know {', '.join(sorted(kwargs))}")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if output_attentions:
            raise ValueError("output_attentions: this model does not give its attention weights")
        cache = past_key_values if cache is None else cache
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache()
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        T = x.shape[1]
        past = int(cache.get_seq_length()) if cache is not None else 0
        if position_ids is None:  # RoPE knows differences alone, so padding in front need not be counted
            position_ids = torch.arange(past, past + T, device=x.device)[None]
        bias = self.attention_bias(attention_mask, past, T, x.device)
        rotation = self.rotation(position_ids)
        keeps_all = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states = []
        for layer in self.layers:
            hidden_states.append(x)
            x = layer(x, bias, rotation, cache)
        x = self.norm(x)
        output = BaseModelOutputWithPast(last_hidden_state=x, hidden_states=(*hidden_states, x) if keeps_all else None,
                                         **{CACHE_NAME: cache})
        return output.to_tuple() if return_dict is False else output


class IngotForCausalLM(IngotPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # if config.tie_word_embeddings

    def __init__(self, config):
        super().__init__(config)
        self.model = IngotModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, cache=None,
                inputs_embeds=None, labels=None, use_cache=None, output_hidden_states=None, output_attentions=None,
                return_dict=None, logits_to_keep=0, **kwargs):
        """labels: (B, T), the tokens themselves; -100 is no target. logits_to_keep: of how many last tokens, 0: all."""
        output = self.model(input_ids, attention_mask, position_ids, past_key_values, cache, inputs_embeds, use_cache,
                            output_hidden_states, output_attentions, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            predicted = logits[:, :-1].float().flatten(0, 1)
            loss = F.cross_entropy(predicted, labels[:, 1:].flatten().to(predicted.device), ignore_index=-100)
        result = IngotOutput(loss=loss, logits=logits, hidden_states=output.hidden_states,
                             **{CACHE_NAME: getattr(output, CACHE_NAME)})
        return result.to_tuple() if return_dict is False else result
