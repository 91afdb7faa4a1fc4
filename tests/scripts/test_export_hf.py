"""./train export --format hf against transformers: logits, greedy text, loss, weights and tokenizers.

Seen to catch: see each test.
"""

import json
import os
import shutil
import unittest

from . import interop_case as case
from .inputs import shard
from .interop_case import needs_interop, torch, transformers

ROPE = {"position": "rope", "rope_theta": 500.0}
# Over a context of 16 the scaling stretches some pairs of a head, leaves some, and blends one.
LLAMA3 = {**ROPE, "rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                                   "original_context_length": 16}}
# name: class, model; each is also trained untied.
KINDS = {
    "rope": ("LlamaForCausalLM", ROPE),
    "rope_qk_norm": ("Qwen3ForCausalLM", {**ROPE, "qk_norm": True}),
    "rope_qkv_bias": ("Qwen2ForCausalLM", {**ROPE, "qkv_bias": True}),
    "llama3": ("LlamaForCausalLM", LLAMA3),
    "alibi": ("IngotForCausalLM", {"position": "alibi", "d_model": 96, "n_heads": 12, "n_kv_heads": 4}),
    "none": ("IngotForCausalLM", {"position": "none"}),
}
# Head size x heads unequal to the width, and what is left of the switches.
MORE_KINDS = {
    "rope_wide": ("LlamaForCausalLM", {**ROPE, "head_dim": 16}),
    "rope_odd_width": ("MistralForCausalLM", {**ROPE, "d_model": 40, "tie_embeddings": False}),
    "llama3_odd_width": ("MistralForCausalLM", {**LLAMA3, "d_model": 40}),
    "qk_norm_wide": ("Qwen3ForCausalLM", {**LLAMA3, "qk_norm": True, "d_model": 40}),
    "qkv_bias_wide": ("Qwen2ForCausalLM", {**LLAMA3, "qkv_bias": True, "d_model": 40}),
    "rope_all": ("IngotForCausalLM", {**ROPE, "qk_norm": True, "qkv_bias": True, "tie_embeddings": False}),
    "llama3_all": ("IngotForCausalLM", {**LLAMA3, "qk_norm": True, "qkv_bias": True, "d_model": 40}),
    "alibi_all": ("IngotForCausalLM", {"position": "alibi", "qk_norm": True, "qkv_bias": True, "head_dim": 16}),
}


def all_kinds():
    for name, (architecture, model) in KINDS.items():
        for tied in (True, False):
            yield f"{name}_{'tied' if tied else 'untied'}", architecture, {**model, "tie_embeddings": tied}
    for name, (architecture, model) in MORE_KINDS.items():
        yield name, architecture, model


def random_ids(count, seed=3):
    return torch.randint(0, 257, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@needs_interop
class ExportCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.runs = case.Runs(cls)

    def trained(self, name, **model):
        folder = self.runs.folder / "runs" / name
        return folder if folder.exists() else self.runs.train(name, model)

    def exported(self, name, dtype="fp32"):
        """The folder of a model that this class has trained."""
        run_folder = self.runs.folder / "runs" / name
        output = self.runs.folder / "exports" / f"{name}-{dtype}"
        return output if output.exists() else self.runs.export(run_folder, dtype)


class EveryKind(ExportCase):
    def test_logits_text_and_loss(self):
        """Each model is computed by the class that the export names, as we compute it."""
        for name, architecture, model_config in all_kinds():
            with self.subTest(name):
                run_folder = self.runs.train(name, model_config)
                model = case.load(self.runs.export(run_folder))
                self.assertEqual(type(model).__name__, architecture)
                self.assertEqual(model.dtype, torch.float32)
                self.check_logits(run_folder, model)
                self.check_text(run_folder, model)
                self.check_loss(run_folder, model)
                self.check_bf16(run_folder, model)

    def check_logits(self, run_folder, model):
        ids = random_ids(128)
        ours, theirs = case.our_logits(run_folder, ids), case.logits_of(model, ids)
        self.assertGreater(ours.std(dim=-1).min().item(), 0.5, "flat logits would prove nothing")
        self.assertLess((ours - theirs).abs().max().item(), 1e-4)

    def check_text(self, run_folder, model):
        for prompt in ("alpha beta ", "(x = 1\n"):
            ids = list(prompt.encode())
            expected = case.our_text(run_folder, prompt)
            for use_cache in (True, False):
                with torch.no_grad():
                    text = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                                          max_new_tokens=64, do_sample=False, use_cache=use_cache)[0].tolist()
                if text[-1] == case.EOT:
                    text.pop()
                else:
                    self.assertEqual(len(text), len(ids) + 64)
                self.assertEqual(bytes(text), expected, f"use_cache={use_cache}")

    def check_loss(self, run_folder, model):
        ours = case.our_evaluation(run_folder, self.runs.folder / "val.bin")
        loss, targets = case.their_evaluation(model, self.runs.val, 128)
        self.assertEqual(targets, ours["targets"])
        self.assertLess(abs(loss - ours["loss"]), 1e-4)

    def check_bf16(self, run_folder, model):
        """Every weight is the fp32 one, rounded to nearest even; the model loads in the type that its config says."""
        rounded = case.load(self.runs.export(run_folder, "bf16"), "auto")
        self.assertEqual(rounded.dtype, torch.bfloat16)
        weights, rounded_weights = model.state_dict(), rounded.state_dict()
        self.assertEqual(weights.keys(), rounded_weights.keys())
        for name, weight in weights.items():
            self.assertTrue(torch.equal(weight.to(torch.bfloat16), rounded_weights[name]), name)


class OwnClass(ExportCase):
    """What people do with a model in transformers, done with modeling_ingot.py."""

    def models(self):
        for name, model in (("alibi", KINDS["alibi"][1]), ("rope_all", MORE_KINDS["rope_all"][1])):
            self.trained(name, **model)
            yield name, self.exported(name)

    def test_padding_in_front_changes_nothing(self):
        for name, folder in self.models():
            with self.subTest(name), torch.no_grad():
                model = case.load(folder)
                prompts = ["alpha beta gamma ", "= 1"]
                longest = max(len(prompt) for prompt in prompts)
                ids = torch.tensor([[case.EOT] * (longest - len(p)) + list(p.encode()) for p in prompts])
                mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
                together = model.generate(ids, attention_mask=mask, max_new_tokens=32, do_sample=False)
                for row, prompt in enumerate(prompts):
                    alone = torch.tensor([list(prompt.encode())])
                    expected = model.generate(alone, attention_mask=torch.ones_like(alone), max_new_tokens=32,
                                              do_sample=False)[0, alone.shape[1]:].tolist()
                    self.assertEqual(together[row, longest:].tolist()[:len(expected)], expected)
                    padded = model(ids, attention_mask=mask).logits[row, -1]
                    self.assertLess((padded - case.logits_of(model, alone[0].tolist())[-1]).abs().max().item(), 1e-4)

    def test_cache_under_both_names(self):
        for name, folder in self.models():
            with self.subTest(name), torch.no_grad():
                model = case.load(folder)
                ids = torch.tensor([random_ids(40)])
                whole = model(ids).logits[0, -7:]
                for given in ("past_key_values", "cache"):
                    first = model(ids[:, :33])
                    self.assertIs(first.past_key_values, first.cache)
                    rest = model(ids[:, 33:], **{given: first.cache})
                    self.assertEqual(rest.cache.get_seq_length(), 40)
                    self.assertLess((rest.logits[0] - whole).abs().max().item(), 1e-4)
                self.assertIsNone(model(ids, use_cache=False).cache)

    def test_caches_of_fixed_size_and_beams(self):
        for name, folder in self.models():
            with self.subTest(name), torch.no_grad():
                model = case.load(folder)
                ids = torch.tensor([list(b"alpha beta ")])
                options = dict(attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
                expected = model.generate(ids, **options).tolist()
                self.assertEqual(model.generate(ids, cache_implementation="static", **options).tolist(), expected)
                with_cache = model.generate(ids, num_beams=3, **options).tolist()
                self.assertEqual(model.generate(ids, num_beams=3, use_cache=False, **options).tolist(), with_cache)

    def test_pipeline_and_tokenizer(self):
        for name, folder in self.models():
            with self.subTest(name):
                write = transformers.pipeline("text-generation", model=str(folder), trust_remote_code=True)
                text = write("alpha beta ", max_new_tokens=16, do_sample=False, return_full_text=True)[0]
                expected = case.our_text(self.runs.folder / "runs" / name, "alpha beta ", 16)
                self.assertEqual(text["generated_text"], expected.decode(errors="replace"))

    def test_labels_give_the_loss_and_gradients(self):
        for name, folder in self.models():
            with self.subTest(name):
                model = case.load(folder)
                ids = torch.tensor([random_ids(50)])
                labels = ids.clone()
                labels[0, 10:20] = -100
                output = model(ids, labels=labels)
                kept = [i for i in range(49) if labels[0, i + 1] >= 0]
                expected = torch.nn.functional.cross_entropy(output.logits[0, kept], ids[0, [i + 1 for i in kept]])
                self.assertAlmostEqual(output.loss.item(), expected.item(), places=5)
                output.loss.backward()
                for parameter_name, parameter in model.named_parameters():
                    self.assertIsNotNone(parameter.grad, parameter_name)

    def test_saved_by_transformers_loads_again(self):
        for name, folder in self.models():
            with self.subTest(name):
                model, ids = case.load(folder), random_ids(30)
                again = self.runs.folder / "again" / name
                model.save_pretrained(str(again))
                self.assertTrue((again / "modeling_ingot.py").exists())
                self.assertTrue(torch.equal(case.logits_of(case.load(again), ids), case.logits_of(model, ids)))

    def test_refuses_what_it_does_not_know(self):
        folder = next(self.models())[1]
        model, ids = case.load(folder), torch.tensor([[1, 2, 3]])
        for error, options in ((TypeError, {"token_type_ids": ids}), (ValueError, {"output_attentions": True})):
            with self.assertRaises(error):
                model(ids, **options)
        changed = self.runs.folder / "changed"
        shutil.copytree(folder, changed)
        config = json.loads((folder / "config.json").read_text())
        (changed / "config.json").write_text(json.dumps({**config, "position_embedding": "learned"}))
        with self.assertRaisesRegex(ValueError, "alibi, rope or none"):
            case.load(changed)

    def test_hidden_states_and_tuples(self):
        model, ids = case.load(next(self.models())[1]), torch.tensor([[1, 2, 3]])
        with torch.no_grad():
            output = model(ids, output_hidden_states=True)
            self.assertEqual(len(output.hidden_states), model.config.num_hidden_layers + 1)
            embedded = model.get_input_embeddings()(ids)
            for name, logits in (("hidden", model.lm_head(output.hidden_states[-1])),
                                 ("tuple", model(ids, return_dict=False)[0]),
                                 ("kept", torch.cat((output.logits[:, :-1], model(ids, logits_to_keep=1).logits), 1)),
                                 ("embedded", model(inputs_embeds=embedded).logits)):
                self.assertEqual(logits.shape, output.logits.shape, name)
                self.assertLess((logits - output.logits).abs().max().item(), 1e-5, name)


class Tokenizers(ExportCase):
    MIXED = "Héllo,  wörld!\n\t中文 😀 don't 1234567 <|endoftext|> \x00\x7f\u0301 ſ ﬁ\r\n" * 3

    def tokenizer_of(self, folder):
        return transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=True)

    def test_bytes(self):
        """Ids are the bytes, for the model types of the library too: those have tokenizers of their own in mind."""
        for name in ("rope", "rope_qk_norm", "rope_qkv_bias", "alibi"):
            with self.subTest(name):
                self.trained(name, **KINDS[name][1])
                tokenizer = self.tokenizer_of(self.exported(name))
                for text in (self.MIXED, "", " ", "a" * 100000):
                    self.assertEqual(tokenizer(text).input_ids, list(text.encode()))
                    self.assertEqual(tokenizer.decode(list(text.encode())), text)
                self.assertEqual((tokenizer.eos_token_id, tokenizer.bos_token_id), (case.EOT, case.EOT))
                self.assertEqual(tokenizer.decode([97, case.EOT], skip_special_tokens=True), "a")

    def test_byte_level_bpe(self):
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
        pattern = Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                        r"|\s*[\r\n]+|\s+(?!\S)|\s+")
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        bpe.decoder = decoders.ByteLevel()
        bpe.train_from_iterator([self.MIXED * 20, "alpha beta gamma delta " * 50], trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<|end|>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        path = self.runs.folder / "tokenizer.json"
        bpe.save(str(path))
        eot = bpe.token_to_id("<|end|>")
        ids = bpe.encode(self.MIXED).ids
        self.assertLess(len(ids), len(self.MIXED.encode()) * 0.7, "merges must be at work")
        (self.runs.folder / "bpe.bin").write_bytes(shard((ids + [eot]) * 12))
        for name in ("rope", "rope_qk_norm", "alibi"):
            with self.subTest(name):
                run_folder = self.runs.train(f"bpe_{name}", {**KINDS[name][1], "vocab_size": 410}, train=["bpe.bin"],
                                             val=[], eot_token=eot, tokenizer=str(path))
                folder = self.runs.export(run_folder)
                self.assertEqual((folder / "tokenizer.json").read_bytes(), path.read_bytes())
                tokenizer = self.tokenizer_of(folder)
                self.assertEqual(tokenizer(self.MIXED).input_ids, ids)
                self.assertEqual(tokenizer.decode(ids), self.MIXED)
                self.assertEqual((tokenizer.eos_token, tokenizer.eos_token_id), ("<|end|>", eot))
                model = case.load(folder)
                prompt = "alpha beta"
                with torch.no_grad():
                    text = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=24, do_sample=False)
                self.assertEqual(tokenizer.decode(text[0], skip_special_tokens=True).encode(),
                                 case.our_text(run_folder, prompt, 24).decode(errors="replace").encode())


@needs_interop
@unittest.skipUnless(torch is not None and torch.cuda.is_available() and os.environ.get("INGOT_HAS_CUDA") != "0",
                     "there is no GPU, or no CUDA in this build")
class OnTheGpu(ExportCase):
    def test_bf16_within_twice_transformers_own_error(self):
        """Our bf16 logits are as near to fp32 as those that transformers computes in bf16."""
        for name in KINDS:
            with self.subTest(name):
                run_folder = self.runs.train(f"{name}_cuda", {**KINDS[name][1], "head_dim": 64}, device="cuda",
                                             sets=["training.precision=bf16"])
                folder = self.runs.export(run_folder, "bf16")
                ids = random_ids(128)
                exact = case.logits_of(case.load(folder, torch.float32), ids)
                theirs = case.logits_of(case.load(folder, torch.bfloat16).cuda(), ids)
                ours = case.our_logits(run_folder, ids, "cuda")
                their_error, our_error = (theirs - exact).norm().item(), (ours - exact).norm().item()
                self.assertGreater(their_error, 0)
                self.assertLess(our_error, 2 * their_error)
                loss = case.their_evaluation(case.load(folder, torch.float32), self.runs.val, 128)[0]
                their_loss = case.their_evaluation(case.load(folder, torch.bfloat16).cuda(), self.runs.val, 128)[0]
                our_loss = case.our_evaluation(run_folder, self.runs.folder / "val.bin", "cuda")["loss"]
                self.assertLess(abs(our_loss - loss), 2 * abs(their_loss - loss) + 2e-3)
