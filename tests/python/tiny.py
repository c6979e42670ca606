"""A random Llama of two layers with a tokenizer of bytes, in a folder, as from_pretrained takes it."""

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def save(folder, layers=2, positions=4096):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<end>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=257, hidden_size=128, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64, max_position_embeddings=positions, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    enlarged(transformers.LlamaForCausalLM._from_config(config)).save_pretrained(folder)
    return str(folder)


def enlarged(model, std=0.08):
    """The model, with weights that are larger than they are initialised: attention is not flat."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    return model
