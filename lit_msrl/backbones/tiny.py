"""The embedded tiny InternVL: a real ``InternVLForConditionalGeneration``, small enough for a laptop."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

SIDE = 64  # pixels of a picture
IMAGE_TOKENS = 4  # tokens per picture, one per quarter
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
TAGS = ("<type>", "</type>", "<caption>", "</caption>", "<think>", "</think>", "<answer>", "</answer>")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<IMG_CONTEXT>{% else %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the texts; any other text still encodes, in more tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL) - len(TAGS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_special_tokens([AddedToken(token, special=True) for token in CONTROL])
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        additional_special_tokens=[t for t in CONTROL if t not in ("<|im_end|>", "<|endoftext|>")],
        chat_template=CHAT,
        model_max_length=2048,
    )


def build_image_processor() -> GotOcr2ImageProcessorPil:
    """InternVL's image processor with one tile of ``SIDE`` pixels per picture."""
    return GotOcr2ImageProcessorPil(size={"height": SIDE, "width": SIDE}, crop_to_patches=False)


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    vision_width: int = 96,
    vision_layers: int = 3,
    seed: int = 0,
) -> InternVLForConditionalGeneration:
    """A randomly initialised InternVL of about 1.5 M parameters."""
    torch.manual_seed(seed)
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        attention_bias=True,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=_id(tokenizer, "<|im_end|>"),
        pad_token_id=_id(tokenizer, "<|endoftext|>"),
        bos_token_id=None,
    )
    vision = InternVLVisionConfig(
        hidden_size=vision_width,
        num_hidden_layers=vision_layers,
        num_attention_heads=4,
        intermediate_size=3 * vision_width,
        image_size=SIDE,
        patch_size=8,
        layer_scale_init_value=1.0,
        hidden_act="gelu_pytorch_tanh",
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=IMAGE_TOKENS,
        downsample_ratio=0.25,
        tie_word_embeddings=True,
    )
    model = InternVLForConditionalGeneration(config)
    _initialise(model)
    return model


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number


def _initialise(model: InternVLForConditionalGeneration) -> None:
    """Start where so small a model learns to look things up within minutes.

    Matrices at 1/sqrt(fan-in); at transformers' 0.02 it does not learn to bind attributes to nouns. The heads
    of the first layer look one, two, three, ... tokens back, what else a model first has to discover. In the
    other layers keys equal queries and the output undoes the values, so that a token first attends to its
    like and copies it (mimetic initialisation, arXiv:2305.09828).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.model.language_model.embed_tokens.weight, std=0.2)
    for index, layer in enumerate(model.model.language_model.layers):
        attention = layer.self_attn
        for matrix in (attention.q_proj, attention.v_proj, attention.o_proj):
            nn.init.orthogonal_(matrix.weight)
        with torch.no_grad():
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.q_norm.weight.fill_(1.6)  # at 1 attention cannot be sharp in heads this narrow
            attention.k_norm.weight.fill_(1.6)
            layer.mlp.down_proj.weight.mul_(0.3)
            if index == 0:
                _look_back(attention, model.model.language_model.config.rope_parameters["rope_theta"])
            else:
                attention.o_proj.weight.copy_(attention.v_proj.weight.T)
    embeddings = model.model.vision_tower.embeddings
    nn.init.normal_(embeddings.patch_embeddings.projection.weight, std=192**-0.5)
    nn.init.normal_(embeddings.position_embeddings, std=0.5)


def _look_back(attention: Qwen3Attention, theta: float) -> None:
    """Let head ``h`` attend ``h + 1`` tokens back: its query's bias is its key's, rotated by that much.

    Rotary embeddings turn dimension ``f`` with ``f + D/2`` by ``theta^(-2f/D)`` per token, so the two meet
    exactly there; the four fastest frequencies tell neighbours apart.
    """
    keys, queries = attention.k_proj, attention.q_proj
    heads = keys.out_features // attention.head_dim
    half = attention.head_dim // 2
    speed = theta ** (-torch.arange(half) / half)
    strength = torch.zeros(half)
    strength[:4] = torch.tensor([3.0, 3.0, 2.0, 1.5])
    back = torch.arange(1, heads + 1)[:, None]
    for linear in (keys, queries):
        linear.weight.mul_(0.3)
    keys.bias.copy_(torch.cat([strength, torch.zeros(half)]).repeat(heads))
    turned = [strength * torch.cos(back * speed), -strength * torch.sin(back * speed)]
    queries.bias.copy_(torch.cat(turned, dim=1).flatten())
