"""./train import of models that transformers itself wrote: the same loss, the same text, and training that goes on.

Seen to catch: an epsilon that is not read; rope_theta of the old spelling alone; training from weights that are drawn.
"""

import json
import shutil

from . import TRAIN, run, set_options
from .import_case import CONTEXT, EOT, ImportCase, VOCABULARY, byte_tokenizer
from .inputs import shard
from .interop_case import Runs, documents, load, needs_interop, their_evaluation, torch, transformers

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
# Class, dtype of the files, what differs from COMMON; sharded: files of at most so many bytes.
COMMON = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "eos_token_id": EOT,
          "bos_token_id": EOT}
MODELS = {
    "llama": ("Llama", "float32", {}, None),
    "llama 3 tied": ("Llama", "bfloat16", {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0},
                                           "tie_word_embeddings": True}, None),
    "llama sharded": ("Llama", "float16", {"rms_norm_eps": 1e-5}, "20KB"),
    "mistral": ("Mistral", "bfloat16", {"sliding_window": None, "head_dim": 12}, None),
    "qwen2": ("Qwen2", "float32", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "30KB"),
    "qwen2 tied": ("Qwen2", "bfloat16", {"tie_word_embeddings": True}, None),
    "qwen3": ("Qwen3", "float16", {"head_dim": 16}, None),
    "qwen3 tied": ("Qwen3", "float32", {"head_dim": 6, "num_attention_heads": 6, "tie_word_embeddings": True}, None),
}


def old_spelling(config):
    """A config.json as transformers 4 wrote it."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else {"type": rope.pop("rope_type"), **rope}
    config["torch_dtype"] = config.pop("dtype")
    for key in ("layer_types", "head_dim") if config["model_type"] != "qwen3" else ("layer_types",):
        config.pop(key, None)
    return config


@needs_interop
class Transformers(ImportCase):
    def save(self, name):
        """A random model far from flat logits, biases and norms included, and its folder."""
        kind, dtype, changes, shard_size = MODELS[name]
        torch.manual_seed(len(name))
        config = getattr(transformers, kind + "Config")(**{**COMMON, **changes})
        model = getattr(transformers, kind + "ForCausalLM")(config)
        for parameter in model.parameters():
            parameter.data.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
        options = {} if shard_size is None else {"max_shard_size": shard_size}
        model.to(getattr(torch, dtype)).save_pretrained(self.source, **options)
        (self.source / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
        self.assertEqual((self.source / "model.safetensors.index.json").exists(), shard_size is not None)
        return load(self.source, dtype=torch.float32)

    def evaluation(self, checkpoint, data):
        return json.loads(run(TRAIN, "eval", "--checkpoint", checkpoint, "--data", data, "--json",
                              cwd=self.folder).stdout)

    def test_same_loss_and_text_and_training_goes_on(self):
        tokens = documents(5, 40, 40)[:16 * CONTEXT + 1]
        (self.folder / "rows.bin").write_bytes(shard(tokens))
        (self.folder / "train.bin").write_bytes(shard(tokens[:8 * CONTEXT + 1]))
        for name in MODELS:
            with self.subTest(name):
                shutil.rmtree(self.source, ignore_errors=True)
                model = self.save(name)
                self.import_model()
                expected, targets = their_evaluation(model, tokens, CONTEXT)
                ours = self.evaluation("out", "rows.bin")
                self.assertEqual(ours["targets"], targets)
                self.assertLess(abs(ours["loss"] - expected), 1e-5 * expected)
                self.check_text(model)
                self.check_training(name, self.evaluation("out", "train.bin")["loss"])
                if name != "mistral":  # whose heads would have another size without the key
                    raw = self.weights()
                    config = (self.folder / "out/config.json").read_bytes()
                    path = self.source / "config.json"
                    path.write_text(json.dumps(old_spelling(json.loads(path.read_text()))))
                    self.import_model()
                    self.assertTrue(self.weights() == raw)
                    self.assertEqual((self.folder / "out/config.json").read_bytes(), config)

    def check_text(self, model):
        """Greedy, without EOT, which ends ours."""
        prompt, count = "alpha beta", 40
        ids = list(prompt.encode())
        for _ in range(count):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == EOT:
                ids.pop()
                break
        ours = run(TRAIN, "generate", "--checkpoint", "out", "--prompt", prompt, "--temperature", 0, "--tokens", count,
                   cwd=self.folder).stdout
        self.assertEqual(ours.rstrip(b"\n"), bytes(ids).rstrip(b"\n"))

    def check_training(self, name, loss):
        """The first step sees the rows of the shard, all of them and in their order."""
        run_name = name.replace(" ", "-")
        sets = [f"name={run_name}", 'data.train=["train.bin"]', "data.val=[]", f"training.batch_tokens={8 * CONTEXT}",
                "data.shuffle=false", "data.eot_token=256", "training.steps=12", "optimizer.lr=3e-3",
                "schedule.warmup_steps=0"]
        run(TRAIN, "--config", "out/config.json", *set_options(sets), cwd=self.folder)
        log = (self.folder / "runs" / run_name / "log.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in log]
        self.assertLess(abs(losses[0] - loss), 1e-5 * loss)
        self.assertLess(losses[-1], 0.9 * losses[0])

class ExportedModels(ImportCase):
    """What ./train export wrote in fp32 comes back with the same bits, and as the same model."""

    def test_same_bits(self):
        runs = Runs(self)
        rope = {"position": "rope"}
        both = {"qk_norm": True, "qkv_bias": True}
        for name, model in {
                "rope": {**rope, "rope_theta": 5e5}, "rope-untied": {**rope, "tie_embeddings": False},
                "odd-width": {**rope, "d_model": 40, "n_heads": 6}, "norm": {**rope, "qk_norm": True, "norm_eps": 1e-6},
                "bias": {**rope, "qkv_bias": True, "head_dim": 16}, "all": {**rope, **both},
                "stretched": {**rope, "rope_scaling": {"type": "llama3", "factor": 8, "original_context_length": 32}},
                "alibi": {"position": "alibi"}, "alibi-all": {"position": "alibi", "tie_embeddings": False, **both},
                "none": {"position": "none"}}.items():
            with self.subTest(name):
                exported = runs.export(runs.train(name, model, sets=["training.steps=2"]))
                self.import_model(source=exported)
                step = runs.folder / "runs" / name / "checkpoints/step-00000002"
                self.assertTrue(self.weights() == (step / "model-00000-of-00001.safetensors").read_bytes())
                models = [json.loads((folder / "manifest.json").read_text())["config"]["model"]
                          for folder in (step, self.folder / "out")]
                for model in models:
                    model.pop("init_std")  # of weights that are there
                self.assertEqual(*models)
