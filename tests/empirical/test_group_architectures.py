"""Scale-invariant groups of many architectures, compared with theory and with direct scaling in double precision."""

import itertools
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.empirical.plain_model import IMAGES, ROWS, TOKENS, Gpt, check_groups, matching, members, sets_of

os.environ["HF_HUB_OFFLINE"] = "1"
pytestmark = pytest.mark.filterwarnings("ignore")


# GPTs --------------------------------------------------------------------------------------------------------------


def check_gpt(layers, has_qk_norm, has_bias):
    torch.manual_seed(0)
    model = Gpt(layers, has_qk_norm, has_bias)
    stream = matching(model, "wte.weight", "wpe.weight", ".o.weight", ".o.bias", "down.weight", "down.bias")
    alone = []
    if has_qk_norm:
        # weight and bias before a QK-norm; without a bias the weight alone
        for block, matrix in itertools.product(range(layers), "qk"):
            alone.append(matching(model, f"blocks.{block}.{matrix}.weight", f"blocks.{block}.{matrix}.bias"))
    check_groups(model, TOKENS, stream, *alone)


@pytest.mark.parametrize(
    ("layers", "has_qk_norm", "has_bias"), [(1, False, False), (2, False, True), (3, True, True), (5, True, False)]
)
def test_gpt(layers, has_qk_norm, has_bias):
    check_gpt(layers, has_qk_norm, has_bias)


@pytest.mark.acceptance
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_qk_norm", [False, True])
@pytest.mark.parametrize("layers", [*range(1, 13), 24, 48])
def test_gpt_of_every_depth(layers, has_qk_norm, has_bias):
    check_gpt(layers, has_qk_norm, has_bias)


@pytest.mark.acceptance
def test_gpt_in_a_fresh_process():
    code = "from tests.empirical.test_group_architectures import check_gpt; check_gpt(3, True, True)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gpt_with_tied_embeddings_has_no_group():
    check_groups(Gpt(2, False, False, is_tied=True), TOKENS)


# architectures -----------------------------------------------------------------------------------------------------


class LlamaRms(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x):
        x32 = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        return self.weight * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)).to(x.dtype)


def rotate(x):
    angles = torch.outer(torch.arange(x.shape[-2]), 1.0 / 100 ** torch.linspace(0, 1, x.shape[-1] // 2)).to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


class Attention(nn.Module):
    def __init__(self, width, heads=2, kv_heads=2, has_bias=False, is_rotary=False):
        super().__init__()
        self.size, self.is_rotary = width // heads, is_rotary
        self.q, self.o = nn.Linear(width, width, bias=has_bias), nn.Linear(width, width, bias=has_bias)
        self.k, self.v = (nn.Linear(width, kv_heads * self.size, bias=has_bias) for _ in "kv")

    def forward(self, x, context=None, bias=None):
        context = x if context is None else context
        q, k, v = (
            layer(z).unflatten(-1, (-1, self.size)).transpose(1, 2)
            for layer, z in ((self.q, x), (self.k, context), (self.v, context))
        )
        k, v = (z.repeat_interleave(q.shape[1] // z.shape[1], 1) for z in (k, v))
        if self.is_rotary:
            q, k = rotate(q), rotate(k)
        scores = q @ k.transpose(-1, -2) / self.size**0.5
        return self.o((torch.softmax(scores if bias is None else scores + bias, -1) @ v).transpose(1, 2).flatten(2))


class Llama(nn.Module):
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm1, self.norm2 = LlamaRms(width), LlamaRms(width)
            self.attention = Attention(width, 4, 2, is_rotary=True)
            self.gate, self.up, self.down = (nn.Linear(a, b, bias=False) for a, b in ((16, 24), (16, 24), (24, 16)))

        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            z = self.norm2(x)
            return x + self.down(functional.silu(self.gate(z)) * self.up(z))

    def __init__(self):
        super().__init__()
        self.embed, self.blocks = nn.Embedding(11, 16), nn.Sequential(*(self.Block(16) for _ in range(2)))
        self.norm, self.head = LlamaRms(16), nn.Linear(16, 11, bias=False)

    def forward(self, ids):
        return self.head(self.norm(self.blocks(self.embed(ids))))


def test_llama():
    model = Llama()
    check_groups(model, TOKENS, matching(model, "embed.weight", ".o.weight", "down.weight"))


class PostNorm(nn.Module):
    """Post-LN transformer as BERT, with or without a normalization of the embeddings."""

    def __init__(self, has_embedding_norm):
        super().__init__()
        self.word, self.position = nn.Embedding(11, 8), nn.Parameter(torch.randn(12, 8))
        self.embedding_norm = nn.LayerNorm(8) if has_embedding_norm else nn.Identity()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, activation="gelu", batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.layer(self.embedding_norm(self.word(ids) + self.position)))


def test_post_norm_transformer():
    check_groups(PostNorm(True), TOKENS, ["word.weight", "position"])
    check_groups(PostNorm(False), TOKENS)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.shortcut, self.norm3 = nn.Conv2d(8, 8, 1, 2, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x):
        x = functional.relu(self.norm0(self.stem(x)))
        x = functional.relu(
            self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x))))) + self.norm3(self.shortcut(x))
        )
        return self.head(x.mean((2, 3)))


def test_resnet():
    names = ("stem", "conv1", "conv2", "shortcut")
    check_groups(ResNet(), IMAGES, *([f"{name}.weight"] for name in names))


class ConvNext(nn.Module):
    class Block(nn.Module):
        def __init__(self, has_bias):
            super().__init__()
            self.depthwise, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=has_bias), nn.LayerNorm(8)
            self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)
            self.layer_scale = nn.Parameter(torch.full((8,), 1e-6))

        def forward(self, x):
            z = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
            return x + (self.layer_scale * self.narrow(functional.gelu(self.wide(z)))).permute(0, 3, 1, 2)

    def __init__(self, has_bias):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.blocks = nn.Sequential(self.Block(has_bias), self.Block(has_bias))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.blocks(self.norm0(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return self.head(self.norm(x.mean((2, 3))))


def test_convnext():
    stem = ["stem.weight", "stem.bias"]
    depthwise = [[f"blocks.{i}.depthwise.weight", f"blocks.{i}.depthwise.bias"] for i in (0, 1)]
    check_groups(ConvNext(True), IMAGES, stem, *depthwise)
    model = ConvNext(False)
    # either layer_scale or weight and bias of each block; the smallest set with a matrix whose parameters come last
    narrow = ["blocks.1.narrow.weight", "blocks.1.narrow.bias"]
    stream = ["norm0.weight", "norm0.bias", "blocks.0.layer_scale", *narrow]
    check_groups(model, IMAGES, stem, stream, *(names[:1] for names in depthwise))


class UNet(nn.Module):
    def __init__(self, groups, has_raw_skip=False):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, 2, 1, bias=False), nn.GroupNorm(2, 4)
        self.up, self.norm3 = nn.ConvTranspose2d(4, 4, 2, 2, bias=False), nn.GroupNorm(groups, 8)
        self.conv3, self.norm4 = nn.Conv2d(8, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4)
        self.head, self.has_raw_skip = nn.Conv2d(4, 2, 1), has_raw_skip

    def forward(self, x):
        raw = self.conv1(x)
        skip = functional.silu(self.norm1(raw))
        joined = torch.cat(
            [self.up(functional.silu(self.norm2(self.conv2(skip)))), raw if self.has_raw_skip else skip], 1
        )
        return self.head(functional.silu(self.norm4(self.conv3(functional.silu(self.norm3(joined))))))


def test_unet():
    singles = [["conv1.weight"], ["conv2.weight"], ["conv3.weight"]]
    # one normalization of upsampled features and of a skip connection that does not scale with them
    check_groups(UNet(1), IMAGES, *singles)
    # normalized separately
    check_groups(UNet(2), IMAGES, *singles, ["up.weight"])
    # both parts scale
    check_groups(UNet(1, True), IMAGES, *singles[1:], ["conv1.weight", "up.weight"])


class Vit(nn.Module):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2, self.attention = nn.LayerNorm(8), nn.LayerNorm(8), Attention(8, has_bias=True)
            self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            return x + self.narrow(functional.gelu(self.wide(self.norm2(x))))

    def __init__(self):
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, 8, 4, 4), nn.Sequential(self.Block(), self.Block())
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 5, 8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


def test_vit():
    model = Vit()
    endings = ("token", "position", "patch.weight", "patch.bias", ".o.weight", ".o.bias", "narrow.weight")
    check_groups(model, IMAGES, matching(model, *endings, "narrow.bias"))


class NormLstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.of_input, self.of_state = nn.Linear(6, 16, bias=False), nn.Linear(4, 16, bias=False)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h, c = torch.zeros(len(x), 4), torch.zeros(len(x), 4)
        for step in x.unbind(1):
            i, f, o, z = (self.norm1(self.of_input(step)) + self.norm2(self.of_state(h.to(x)))).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
            h = torch.sigmoid(o) * torch.tanh(self.norm3(c.to(x)))
        return self.head(h)


def test_lstm():
    inputs = torch.randn(10, 4, 6, generator=torch.Generator().manual_seed(0))
    check_groups(NormLstm(), inputs, ["of_input.weight"], ["of_state.weight"])


class T5(nn.Module):
    class Block(nn.Module):
        def __init__(self, is_decoder):
            super().__init__()
            self.norm1, self.norm2, self.norm3 = (LlamaRms(8) for _ in range(3))
            self.own, self.cross = Attention(8), Attention(8) if is_decoder else None
            self.wide, self.narrow = nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False)

        def forward(self, x, bias, context=None):
            x = x + self.own(self.norm1(x), bias=bias)
            if self.cross:
                x = x + self.cross(self.norm2(x), context)
            return x + self.narrow(functional.relu(self.wide(self.norm3(x))))

    def __init__(self, is_tied):
        super().__init__()
        self.shared, self.relative = nn.Embedding(11, 8), nn.Embedding(24, 2)
        self.encoder, self.decoder = self.Block(False), self.Block(True)
        self.norm1, self.norm2 = LlamaRms(8), LlamaRms(8)
        self.head = nn.Linear(8, 11, bias=False)
        if is_tied:
            self.head.weight = self.shared.weight

    def bias(self, length):
        steps = torch.arange(length)
        return self.relative(steps[:, None] - steps + 12).permute(2, 0, 1)

    def forward(self, input_ids, decoder_input_ids):
        context = self.norm1(self.encoder(self.shared(input_ids), self.bias(input_ids.shape[1])))
        x = self.decoder(self.shared(decoder_input_ids), self.bias(decoder_input_ids.shape[1]), context)
        return {"logits": self.head(self.norm2(x))}


class Experts(nn.Module):
    """Residual mixture of experts, of which each sample uses two."""

    def __init__(self):
        super().__init__()
        self.stem, self.router = nn.Linear(6, 8, bias=False), nn.Linear(8, 4, bias=False)
        self.experts = nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in range(4)])
        self.norm1, self.norm2, self.head = nn.LayerNorm(8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        z = self.norm1(x)
        shares, chosen = self.router(z).softmax(-1).topk(2, -1)
        for number, expert in enumerate(self.experts):
            x = x + (shares * (chosen == number)).sum(-1, keepdim=True) * expert(z)
        return self.head(self.norm2(x))


class CosineHead(nn.Module):
    """Two linear layers and class vectors that are compared by their cosine, with a learned temperature."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.classes, self.temperature = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        z = self.second(functional.relu(self.first(x)))
        return self.temperature.exp() * functional.cosine_similarity(z[:, None], self.classes, dim=-1)


class StandardizedConv(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


def test_other_architectures():
    check_groups(Experts(), ROWS, ["stem.weight", *(f"experts.{number}.weight" for number in range(4))])
    check_groups(CosineHead(), ROWS, ["first.weight"], ["second.weight"], ["classes"])
    model = nn.Sequential(StandardizedConv(3, 4, 3), nn.ReLU(), StandardizedConv(4, 4, 3), nn.Conv2d(4, 2, 3))
    assert members(model, IMAGES) == [("0.weight",), ("2.weight",)]


def test_t5():
    inputs = {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :5].flip(0)}
    model = T5(False)
    check_groups(model, inputs, matching(model, "shared.weight", ".o.weight", "narrow.weight"))
    check_groups(T5(True), inputs)


class Ngpt(nn.Module):
    """Weights and activations are normalized, as in nGPT."""

    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down, self.head = (
            nn.Parameter(torch.randn(*shape)) for shape in ((11, 8), (16, 8), (8, 16), (11, 8))
        )
        self.alpha, self.scale = nn.Parameter(torch.full((8,), 0.05)), nn.Parameter(torch.ones(11))

    def forward(self, ids):
        unit = partial(functional.normalize, dim=-1)
        x = functional.embedding(ids, unit(self.embed))
        branch = unit(functional.linear(functional.silu(functional.linear(x, unit(self.up))), unit(self.down)))
        x = unit(x + self.alpha * (branch - x))
        return functional.linear(x, unit(self.head)) * self.scale


def test_ngpt():
    check_groups(Ngpt(), TOKENS, ["embed"], ["up"], ["down"], ["head"])


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.norm1, self.norm2, self.norm3 = nn.Conv2d(3, 8, 4, 4), *(nn.LayerNorm(8) for _ in range(3))
        self.token1, self.token2 = nn.Linear(4, 6), nn.Linear(6, 4)
        self.channel1, self.channel2, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.token2(functional.gelu(self.token1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.channel2(functional.gelu(self.channel1(self.norm2(x))))
        return self.head(self.norm3(x).mean(1))


def test_mlp_mixer():
    # the bias of the tokens is equal in all channels, and LayerNorm subtracts their mean
    stream = ["patch.weight", "patch.bias", "token2.weight", "channel2.weight", "channel2.bias"]
    check_groups(Mixer(), IMAGES, stream)


# models of transformers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def test_llama_of_transformers(transformers):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    for is_tied in (False, True):
        config = transformers.LlamaConfig(vocab_size=11, num_key_value_heads=2, tie_word_embeddings=is_tied, **sizes)
        model = transformers.LlamaForCausalLM(config)
        stream = matching(model, "embed_tokens.weight", "o_proj.weight", "down_proj.weight")
        # this RMSNorm computes in single precision
        check_groups(model, {"input_ids": TOKENS}, *([] if is_tied else [stream]), invariant=1e-5, changed=1e-4)


def test_gpt2_of_transformers(transformers):
    for is_tied in (False, True):
        config = transformers.GPT2Config(
            vocab_size=11, n_positions=16, n_embd=8, n_layer=2, n_head=2, tie_word_embeddings=is_tied,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
        stream = matching(model, "wte.weight", "wpe.weight", "c_proj.weight", "c_proj.bias")
        inputs = {"input_ids": TOKENS, "labels": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
        check_groups(model, inputs, *([] if is_tied else [stream]))


def test_vit_of_transformers(transformers):
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=4, **sizes))
    alone = ("query", "key", "value", "intermediate", "classifier", "layernorm", "fc1", "_before", "_after")
    alone = (*alone, "q_proj", "k_proj", "v_proj")
    stream = [name for name, _ in model.named_parameters() if not any(part in name for part in alone)]
    check_groups(model, {"pixel_values": IMAGES}, stream)


def test_bert_of_transformers(transformers):
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=11, max_position_embeddings=16, tie_word_embeddings=False, **sizes)
    inputs = {"input_ids": TOKENS, "attention_mask": (TOKENS != 0).long()}  # padding in any place
    for kind in (transformers.BertForSequenceClassification, transformers.BertForTokenClassification):
        model = kind(config)
        check_groups(model, inputs, matching(model, "_embeddings.weight"))


def test_experts_of_transformers(transformers):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.MixtralConfig(vocab_size=11, num_key_value_heads=2, num_local_experts=4, **sizes)
    config._experts_implementation = "eager"  # the fast one has no double precision
    model = transformers.MixtralForCausalLM(config)
    stream = matching(model, "embed_tokens.weight", "o_proj.weight", "down_proj")
    assert sets_of(members(model, {"input_ids": TOKENS})) == {frozenset(stream)}


def test_t5_of_transformers(transformers):
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 11}
    inputs = {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :5].flip(0)}
    for is_tied in (False, True):
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(tie_word_embeddings=is_tied, **sizes))
        stream = matching(model, "shared.weight", ".o.weight", "wo.weight")
        is_head_tied = model.lm_head.weight is model.shared.weight
        check_groups(model, inputs, *([] if is_head_tied else [stream]))
