"""The architecture zoo: tiny random checkpoints of the true configuration classes, and where their parts lie.

Every architecture is described from Hugging Face's side alone (module names, layout of fused matrices, norms), so that
what the library finds through TransformerLens can be compared with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from conftest import build_tiny_tokenizer, randomised

Component = str
HEADS, D_HEAD, D_MODEL, D_MLP, LAYERS = 4, 8, 32, 48, 2


@dataclass(frozen=True)
class Member:
    """One architecture of the zoo, with the Hugging Face names of its parts."""

    name: str
    config: Callable[[], Any]
    blocks: str
    matrices: dict[Component, str]
    """Module in a block that holds each matrix; a fused one holds several."""
    fused: Callable[[Tensor, Component, int, int], Tensor] | None = None
    """The rows of a fused matrix (output features first) or bias that belong to a component, as a view."""
    transposed: bool = False
    """Weights are stored with input features first (GPT-2's Conv1D)."""
    norm_after: dict[str, str] = field(default_factory=dict)
    """Norms through which a matrix's output goes before anything else, by "q", "k", "attn", "mlp"."""
    hooked: bool = True
    """Whether load_model makes a HookedTransformer of such a checkpoint with transformer-lens 3.9."""
    hooked_note: str = ""
    """Why it does not."""
    bridge_note: str = ""
    everywhere: bool = True
    """Whether the tests of single capabilities take it too, and not the support table alone."""
    bridge_only: str = ""
    """Why the support table has no rows of its HookedTransformer, though it may load."""

    def build(self, seed: int = 0) -> Any:
        """A fresh plain Hugging Face model with random weights, norms and biases."""
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return randomised(AutoModelForCausalLM.from_config(self.config())).eval()

    def block(self, hf: Any, layer: int) -> nn.Module:
        return hf.get_submodule(f"{self.blocks}.{layer}")

    def module(self, hf: Any, layer: int, component: Component) -> nn.Module:
        return self.block(hf, layer).get_submodule(self.matrices[component])

    def norm(self, hf: Any, layer: int, which: str) -> nn.Module:
        return self.block(hf, layer).get_submodule(self.norm_after[which])

    def weight(self, hf: Any, layer: int, component: Component) -> Tensor:
        """A view of one matrix, output features first."""
        weight = self.module(hf, layer, component).weight.detach()
        return self._part(hf, weight.T if self.transposed else weight, component)

    def bias(self, hf: Any, layer: int, component: Component) -> Tensor | None:
        """A view of the bias of one matrix."""
        bias = getattr(self.module(hf, layer, component), "bias", None)
        return None if bias is None else self._part(hf, bias.detach(), component)

    def _part(self, hf: Any, whole: Tensor, component: Component) -> Tensor:
        if self.fused is None or [*self.matrices.values()].count(self.matrices[component]) == 1:
            return whole
        kv_heads = self.kv_heads(hf)
        return self.fused(whole, component, kv_heads, self.head_width(hf))

    def kv_heads(self, hf: Any) -> int:
        if getattr(hf.config, "multi_query", False):
            return 1
        return int(getattr(hf.config, "num_key_value_heads", None) or HEADS)

    def head_width(self, hf: Any) -> int:
        return int(getattr(hf.config, "head_dim", None) or D_HEAD)

    def cancelled(self, component: Component) -> str | None:
        """The key in ``norm_after`` of the norm that cancels a scale on this matrix."""
        sublayer = {"v": "attn", "o": "attn", "in": "mlp", "out": "mlp"}.get(component, component)
        return sublayer if sublayer in self.norm_after else None

    def edited(self, hf: Any, layers: tuple[int, ...], components: tuple[Component, ...], alpha: float) -> Any:
        """A copy with the ``.weight`` of the matrices multiplied by α, biases untouched: the naive weight edit."""
        changed = copy.deepcopy(hf)
        with torch.no_grad():
            for layer in layers:
                for component in components:
                    self.weight(changed, layer, component).mul_(alpha)
        return changed

    @contextmanager
    def scaled(
        self, hf: Any, layers: tuple[int, ...], components: tuple[Component, ...], alpha: float
    ) -> Iterator[Any]:
        """The same, with α behind the norm, by a plain forward hook on it, for matrices whose scale it cancels."""
        moved = [c for c in components if self.cancelled(c)]
        changed = self.edited(hf, layers, tuple(c for c in components if c not in moved), alpha)
        handles = []
        for layer in layers:
            for component in moved:
                norm = self.norm(changed, layer, self.cancelled(component) or "")
                handles.append(norm.register_forward_hook(lambda module, inputs, output: output * alpha))
        yield changed
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class MixtureMember(Member):
    """A mixture of experts: gate, in and out are those of every expert, of the shared one, and of dense layers."""

    def build(self, seed: int = 0) -> Any:
        hf = super().build(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, parameter in hf.named_parameters():
                if name.endswith("proj_bias"):  # gpt-oss's experts start with none
                    parameter.data.normal_(0, 0.3)
        return hf

    def edited(self, hf: Any, layers: tuple[int, ...], components: tuple[Component, ...], alpha: float) -> Any:
        changed = super().edited(hf, layers, tuple(c for c in components if c in "qkvo"), alpha)
        for layer in layers:
            for module in self.block(changed, layer).modules():
                for component in set(components) - set("qkvo"):
                    self._scale_in(module, component, alpha)
        return changed

    @staticmethod
    def _scale_in(module: Any, component: Component, alpha: float) -> None:
        alone = {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}[component]
        fused, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
        if isinstance(getattr(module, alone, None), nn.Linear):
            getattr(module, alone).weight.data.mul_(alpha)
        elif fused is not None and component == "out":
            down.data.mul_(alpha)
        elif fused is not None and hasattr(module, "gate_up_proj_bias"):  # gpt-oss: [expert, d_model, in turn]
            fused.data[:, :, component == "in" :: 2].mul_(alpha)
        elif fused is not None:
            fused.data.chunk(2, dim=1)[component == "in"].mul_(alpha)


def _llama_qkv(whole: Tensor, component: Component, kv_heads: int, width: int) -> Tensor:
    """q, then k, then v (Phi-3, GPT-2, Falcon's multi-query); gate, then up."""
    if component in ("gate", "in"):
        return whole.chunk(2)[component == "in"]
    return whole.split([HEADS * width, kv_heads * width, kv_heads * width])["qkv".index(component)]


def _interleaved_qkv(whole: Tensor, component: Component, kv_heads: int, width: int) -> Tensor:
    """q, k and v of one head, then of the next (GPT-NeoX, BLOOM); kept as a view with a head axis."""
    return whole.unflatten(0, (HEADS, 3, width))[:, "qkv".index(component)]


_LLAMA = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "in": "mlp.up_proj",
    "out": "mlp.down_proj",
}
_PHI3 = _LLAMA | dict.fromkeys("qkv", "self_attn.qkv_proj") | {"gate": "mlp.gate_up_proj", "in": "mlp.gate_up_proj"}
_GPT2 = dict.fromkeys("qkv", "attn.c_attn") | {"o": "attn.c_proj", "in": "mlp.c_fc", "out": "mlp.c_proj"}


def _fused(attention: str) -> dict[Component, str]:
    qkv = dict.fromkeys("qkv", f"{attention}.query_key_value")
    return qkv | {"o": f"{attention}.dense", "in": "mlp.dense_h_to_4h", "out": "mlp.dense_4h_to_h"}


_FC = {"in": "mlp.fc1", "out": "mlp.fc2"}
_NO_GATE = {component: name for component, name in _LLAMA.items() if component != "gate"}
_QK_NORM = {"q": "self_attn.q_norm", "k": "self_attn.k_norm"}
_GEMMA_AFTER = {"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


@cache
def tokenizer() -> Any:
    return build_tiny_tokenizer()


def _of(class_name: str, *, without: tuple[str, ...] = (), **changes: Any) -> Callable[[], Any]:
    """A configuration of this class in the zoo's sizes, in the names that Llama's descendants share."""

    def make() -> Any:
        import transformers

        settings: dict[str, Any] = {
            "vocab_size": len(tokenizer()),
            "hidden_size": D_MODEL,
            "intermediate_size": D_MLP,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            **_SPECIAL,
        }
        for name in without:
            del settings[name]
        return getattr(transformers, class_name)(**settings | changes)

    return make


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_NO_OFFICIAL = "transformer-lens 3.9 makes this HookedTransformer by official name only"
_NONE = "transformer-lens 3.9 has no HookedTransformer of it"
_BY_NAME = (
    "transformer-lens 3.9 makes this HookedTransformer by official name only: give load_model the ready model; it has "
    "no Hugging Face configuration to be exported with"
)
_FALCON: Any = {"without": ("intermediate_size", "num_key_value_heads"), "alibi": False, "parallel_attn": True}
_GEMMA: Any = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4}

_MEMBERS = [
    Member(
        "Llama-2",
        _of("LlamaConfig", num_key_value_heads=HEADS, tie_word_embeddings=False),
        "model.layers",
        _LLAMA,
    ),
    Member(
        "Llama-3",
        _of("LlamaConfig", tie_word_embeddings=False, rope_parameters=_LLAMA3_ROPE),
        "model.layers",
        _LLAMA,
    ),
    Member(
        "Llama with biases",
        _of("LlamaConfig", attention_bias=True, mlp_bias=True),
        "model.layers",
        _LLAMA,
        hooked=False,
        hooked_note="transformer-lens 3.9 drops a Llama's biases",
    ),
    Member("Mistral", _of("MistralConfig", sliding_window=None), "model.layers", _LLAMA),
    Member(
        "Gemma-1",
        _of("GemmaConfig", head_dim=16, num_key_value_heads=1),
        "model.layers",
        _LLAMA,
        hooked=False,
        hooked_note=_BY_NAME,
    ),
    Member(
        "Gemma-2",
        _of("Gemma2Config", **_GEMMA),
        "model.layers",
        _LLAMA,
        norm_after=_GEMMA_AFTER,
        hooked=False,
        hooked_note=_BY_NAME,
    ),
    Member(
        "Gemma-3",
        _of("Gemma3TextConfig", **_GEMMA),
        "model.layers",
        _LLAMA,
        norm_after=_GEMMA_AFTER | _QK_NORM,
        hooked=False,
        hooked_note=_BY_NAME,
    ),
    Member("Phi-3", _of("Phi3Config"), "model.layers", _PHI3, fused=_llama_qkv),
    Member("Qwen2", _of("Qwen2Config", tie_word_embeddings=True), "model.layers", _LLAMA),
    Member("Qwen2.5", _of("Qwen2Config", tie_word_embeddings=False, rope_theta=1e6), "model.layers", _LLAMA),
    Member("Qwen3", _of("Qwen3Config", head_dim=D_HEAD), "model.layers", _LLAMA, norm_after=_QK_NORM),
    Member(
        "OLMo-2",
        # A small epsilon, because random embeddings are small and nothing normalises them first.
        _of("Olmo2Config", num_key_value_heads=HEADS, rms_norm_eps=1e-9),
        "model.layers",
        _LLAMA,
        norm_after=_GEMMA_AFTER | _QK_NORM,
        hooked=False,
        hooked_note=_BY_NAME,
    ),
    Member(
        "GPT-2",
        _of("GPT2Config", without=("intermediate_size", "num_key_value_heads")),
        "transformer.h",
        _GPT2,
        fused=_llama_qkv,
        transposed=True,
    ),
    Member(
        "Pythia",
        _of("GPTNeoXConfig", without=("num_key_value_heads",), rotary_pct=0.25),
        "gpt_neox.layers",
        _fused("attention"),
        fused=_interleaved_qkv,
    ),
    Member(
        "BLOOM",
        _of("BloomConfig", without=("intermediate_size", "num_key_value_heads", "max_position_embeddings")),
        "transformer.h",
        _fused("self_attention"),
        fused=_interleaved_qkv,
    ),
    Member(
        "Falcon-7B",
        _of("FalconConfig", multi_query=True, bias=True, **_FALCON),
        "transformer.h",
        _fused("self_attention"),
        fused=_llama_qkv,
        hooked=False,
        hooked_note="transformer-lens 3.9 has no HookedTransformer of Falcon",
    ),
    Member(
        "Falcon-40B",
        _of("FalconConfig", new_decoder_architecture=True, num_kv_heads=2, **_FALCON),
        "transformer.h",
        _fused("self_attention"),
        hooked=False,
        hooked_note="transformer-lens 3.9 has no HookedTransformer of Falcon",
        bridge_note="transformer-lens cannot split the grouped query_key_value of Falcon's new decoder",
    ),
    Member("Llama with wide heads", _of("LlamaConfig", head_dim=16), "model.layers", _LLAMA, everywhere=False),
    Member(
        "Llama, linear positions",
        _of("LlamaConfig", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
        "model.layers",
        _LLAMA,
        everywhere=False,
    ),
    Member("Mistral with a window", _of("MistralConfig", sliding_window=4), "model.layers", _LLAMA, everywhere=False),
    Member(
        "Qwen2 with a window",
        _of("Qwen2Config", use_sliding_window=True, sliding_window=4, max_window_layers=1),
        "model.layers",
        _LLAMA,
        everywhere=False,
    ),
    Member(
        "Phi-4-mini",
        _of("Phi3Config", rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        "model.layers",
        _PHI3,
        fused=_llama_qkv,
        everywhere=False,
    ),
    Member(
        "Phi-2",
        _of("PhiConfig", num_key_value_heads=HEADS),
        "model.layers",
        _NO_GATE | _FC | {"o": "self_attn.dense"},
        hooked=False,
        hooked_note=_NO_OFFICIAL,
        everywhere=False,
    ),
    Member(
        "OLMo-1", _of("OlmoConfig"), "model.layers", _LLAMA, hooked=False, hooked_note=_NO_OFFICIAL, everywhere=False
    ),
    Member(
        "OPT",
        _of(
            "OPTConfig",
            without=("intermediate_size", "num_key_value_heads"),
            ffn_dim=D_MLP,
            word_embed_proj_dim=D_MODEL,
        ),
        "model.decoder.layers",
        _NO_GATE | {"o": "self_attn.out_proj", "in": "fc1", "out": "fc2"},
        hooked=False,
        hooked_note="transformer-lens 3.9 has no place for OPT's first two position embeddings",
        everywhere=False,
    ),
    Member(
        "GPTBigCode",
        _of("GPTBigCodeConfig", without=("intermediate_size", "num_key_value_heads"), multi_query=True),
        "transformer.h",
        _GPT2,
        fused=_llama_qkv,
        hooked=False,
        hooked_note=_NONE,
        everywhere=False,
    ),
    Member(
        "StarCoder2",
        _of("Starcoder2Config"),
        "model.layers",
        _NO_GATE | {"in": "mlp.c_fc", "out": "mlp.c_proj"},
        hooked=False,
        hooked_note=_NONE,
        everywhere=False,
    ),
    *(
        Member(name, config, "model.layers", matrices, fused, hooked=False, hooked_note=note, everywhere=False)
        for name, config, matrices, fused, note in (
            ("StableLM", _of("StableLmConfig"), _LLAMA, None, _NO_OFFICIAL),
            (
                "Granite",
                _of("GraniteConfig", embedding_multiplier=2.0, residual_multiplier=0.5, attention_multiplier=0.2),
                _LLAMA,
                None,
                _NONE,
            ),
            ("SmolLM3", _of("SmolLM3Config", no_rope_layers=[1, 0]), _LLAMA, None, _NONE),
            (
                "GLM",
                _of("GlmConfig", head_dim=D_HEAD),
                _LLAMA | dict.fromkeys(("gate", "in"), "mlp.gate_up_proj"),
                _llama_qkv,
                _NONE,
            ),
            ("Nemotron", _of("NemotronConfig"), _NO_GATE, None, _NONE),
        )
    ),
    Member(
        "Cohere",
        _of("CohereConfig"),
        "model.layers",
        _LLAMA,
        hooked=False,
        hooked_note=_NONE,
        bridge_note="transformer-lens 3.9 makes a bridge of it that computes something else, which is refused",
        everywhere=False,
    ),
]
_MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_DEEPSEEK: dict[str, Any] = _MOE | {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
_MEMBERS += [
    MixtureMember(
        name,
        _of(kind, **settings),
        "model.layers",
        _LLAMA,
        norm_after=norms,
        everywhere=False,
        bridge_only="not examined: experts have units on a TransformerBridge alone",
    )
    for name, kind, settings, norms in (
        ("Mixtral", "MixtralConfig", _MOE | {"num_local_experts": 4}, {}),
        ("OLMoE", "OlmoeConfig", _MOE | {"num_experts": 4}, _QK_NORM),
        ("Qwen2-MoE", "Qwen2MoeConfig", _MOE | {"num_experts": 4, "shared_expert_intermediate_size": 40}, {}),
        ("Qwen3-MoE", "Qwen3MoeConfig", _MOE | {"num_experts": 4, "head_dim": D_HEAD}, _QK_NORM),
        (
            "gpt-oss",
            "GptOssConfig",
            _MOE | {"num_local_experts": 4, "head_dim": D_HEAD, "layer_types": ["full_attention"] * LAYERS},
            {},
        ),
        # GLM-4.5's is DeepSeek-V3's: a dense first layer, a shared expert, and a router that takes groups first.
        ("GLM-4.5", "Glm4MoeConfig", _DEEPSEEK | {"head_dim": D_HEAD}, {}),
    )
]
ZOO = {member.name: member for member in _MEMBERS}


@cache
def hugging_face(name: str) -> Any:
    """The plain model of a member, shared: copy it before changing it."""
    return ZOO[name].build()


@cache
def hooked_model(name: str, backend: str) -> Any:
    """The member as a TransformerLens model over the same parameters, shared: do not change it."""
    if backend == "hooked" and ZOO[name].hooked_note is _BY_NAME and backend in backends():
        return load(_ready_hooked(name), backend)
    return load(hugging_face(name), backend)


def load(hf: Any, backend: str) -> Any:
    """A model of the zoo with the zoo's tokenizer."""
    from safecircuits.model.load import load_model

    return load_model(hf, backend=backend, tokenizer=tokenizer())


def backends() -> tuple[str, ...]:
    """The backends that the installed transformer-lens has."""
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return ("bridge",)
    return ("bridge", "hooked")


def pairs() -> list[tuple[str, str]]:
    """(member, backend) of every model that loads here."""
    return [
        (member.name, backend)
        for member in _MEMBERS
        if member.everywhere
        for backend in backends()
        if (not member.bridge_note if backend == "bridge" else member.hooked or member.hooked_note is _BY_NAME)
    ]


def _ready_hooked(name: str) -> Any:
    """A HookedTransformer as ``from_pretrained_no_processing`` makes it for architectures known by official name only.

    TransformerLens's own converter on a configuration in the zoo's sizes instead of the official one.
    """
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gemma_weights, convert_olmo2_weights

    hf = hugging_face(name)
    config: Any = hf.config
    settings: dict[str, Any] = {
        "d_model": D_MODEL,
        "d_head": ZOO[name].head_width(hf),
        "n_heads": HEADS,
        "n_key_value_heads": ZOO[name].kv_heads(hf),
        "d_mlp": D_MLP,
        "n_layers": LAYERS,
        "n_ctx": 64,
        "d_vocab": config.vocab_size,
        "eps": config.rms_norm_eps,
        "act_fn": "gelu_pytorch_tanh",
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_base": 10000,
        "rotary_dim": ZOO[name].head_width(hf),
        "original_architecture": type(hf).__name__,
    }
    if name in ("Gemma-2", "Gemma-3"):
        kinds = ["local" if kind == "sliding_attention" else "global" for kind in config.layer_types]
        settings |= {"use_normalization_before_and_after": True, "use_local_attn": True, "attn_types": kinds}
        settings |= {"window_size": config.sliding_window}
    if name == "Gemma-2":
        settings |= {"attn_scores_soft_cap": 50.0, "output_logits_soft_cap": 30.0}
    if name == "Gemma-3":
        settings |= {"use_qk_norm": True, "rotary_base": 1000000, "rotary_base_local": 10000}
    if name == "OLMo-2":
        settings |= {"act_fn": "silu", "n_key_value_heads": None}  # TransformerLens's is for the sizes without GQA
    cfg = HookedTransformerConfig(**settings)
    convert = convert_olmo2_weights if name == "OLMo-2" else convert_gemma_weights
    model = HookedTransformer(cfg)
    model.load_state_dict({k: v.detach() for k, v in convert(hf, cfg).items()}, strict=False)
    model.tokenizer = tokenizer()
    return model.eval()
