"""Makes tiny Hugging Face folders and what `transformers` computes with them.

Run it in an environment of its own, as `make_bert_goldens.py`. It writes `hugging_face/NAME/` next
to itself, for a class of transformers each: the folder as `save_pretrained` leaves it (random
weights everywhere, biases and layer norms included), `vocab.txt`, `tokenizer_config.json`, and
`expected.npz` with a batch (`tokens`, `segments`, `lengths`), `hidden` [L + 1, B, S, D] and the
outputs. `pretraining` is of the tanh GELU, and has the names that the first releases had
(gamma, beta, position_ids, the tied output layer) and three rows more than tokens.
"""

import json
import os
import shutil

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hugging_face")
WORDS = "the a of to and in is it that was for on as with he be at by had not but from one you she"
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), "##s", "##ed", ".", ","]
NAMES = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}, "label2id": {"O": 0, "B-PER": 1, "I-PER": 2}}
MODELS = {  # folder: class, changes of the config, names of the outputs
    "pretraining": (
        "BertForPreTraining",
        {"hidden_act": "gelu_new", "vocab_size": len(TOKENS) + 3},
        ["prediction_logits", "seq_relationship_logits"],
    ),
    "encoder": ("BertModel", {}, ["pooler_output"]),
    "classification": ("BertForSequenceClassification", NAMES, ["logits"]),
    "tagging": ("BertForTokenClassification", NAMES, ["logits"]),
    "answering": ("BertForQuestionAnswering", {}, ["start_logits", "end_logits"]),
    "choice": ("BertForMultipleChoice", {}, ["logits"]),
}


def make(name: str, seed: int) -> None:
    """Writes the folder `name`: L 2, D 16, N 4, F 24, S up to 12, B 2 (a choice: B 1, C 2)."""
    kind, changes, outputs = MODELS[name]
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    settings = {
        "vocab_size": len(TOKENS), "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 12,
        "hidden_dropout_prob": 0.2, "layer_norm_eps": 1e-6, "attn_implementation": "eager",
    }  # fmt: skip
    model = getattr(transformers, kind)(transformers.BertConfig(**settings | changes)).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.normal_(1.0 * ("LayerNorm.weight" in parameter_name), 0.25)
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    if name == "pretraining":
        make_old(os.path.join(folder, "model.safetensors"), model)
    with open(os.path.join(folder, "vocab.txt"), "w") as file:
        file.write("".join(token + "\n" for token in TOKENS))
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as file:
        json.dump({"do_lower_case": True, "tokenizer_class": "BertTokenizer"}, file)
    if os.path.exists(os.path.join(folder, "generation_config.json")):
        os.remove(os.path.join(folder, "generation_config.json"))

    shape = (1, 2, 12) if name == "choice" else (2, 12)
    lengths = np.array([[12, 7]] if name == "choice" else [12, 7])
    real = np.arange(12) < lengths[..., None]
    tokens = np.where(real, rng.integers(4, len(TOKENS), shape), 0)
    segments = ((np.arange(12) >= 5) & real).astype(np.int64)
    with torch.no_grad():
        result = model(
            input_ids=torch.tensor(tokens),
            token_type_ids=torch.tensor(segments),
            attention_mask=torch.tensor(real.astype(np.int64)),
            output_hidden_states=True,
        )
    arrays = {"tokens": tokens, "segments": segments, "lengths": lengths}
    arrays = {key: value.astype(np.int32) for key, value in arrays.items()}
    arrays["hidden"] = torch.stack(result.hidden_states).numpy()
    arrays |= {output: result[output].numpy() for output in outputs}
    np.savez_compressed(os.path.join(folder, "expected.npz"), **arrays)


def make_old(path: str, model: torch.nn.Module) -> None:
    """Gives the arrays in a file the names of the first releases, with all copies."""
    arrays = load_file(path)
    old = {}
    for name, value in arrays.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old[name.replace("LayerNorm.bias", "LayerNorm.beta")] = value
    table = model.bert.embeddings.word_embeddings.weight.detach().numpy()
    old["cls.predictions.decoder.weight"] = table.copy()
    old["bert.embeddings.position_ids"] = np.arange(12)[None]
    save_file(old, path, {"format": "pt"})


if __name__ == "__main__":
    for number, name in enumerate(MODELS):
        make(name, number)
