"""What each launch of a MoE layer has to read, write and compute, on paper: kernels/README.md has the formulas."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, D hidden, F expert width,
# G = 2F (gate, then up), C chunks of tokens.

from typing import NamedTuple

WORKSPACE = {"chunk_starts", "chunk_load", "chunk_probability", "ticket", "grad_logits"}
"""Arguments that an operation is neither given nor returns, so that no bound on it counts them."""


class Shape(NamedTuple):
    """One MoE layer on one batch."""

    T: int
    E: int
    K: int
    D: int
    F: int
    b: int
    """Bytes of a number of x and of the weights."""
    tile: int
    """Tokens that a program of `route` takes at a time."""
    Z: int = 0
    """Experts without rows."""

    @property
    def N(self) -> int:
        """Routed rows."""
        return self.T * self.K

    @property
    def G(self) -> int:
        """Gate and up together."""
        return 2 * self.F

    @property
    def C(self) -> int:
        """Chunks of tokens."""
        return -(-self.T // self.tile)


class Options(NamedTuple):
    """What `route` is asked for beyond weights and ids."""

    masked: bool = False
    biased: bool = False
    probabilities: bool = False
    renormalised: bool = False
    logsumexp_gradient: bool = False


PLAIN = Options()


class Step(NamedTuple):
    """One launch. Bytes are distinct ones, by the argument that they belong to."""

    name: str
    """The kernel, and of what where it is launched more than once."""
    reads: dict[str, int]
    writes: dict[str, int]
    flops: int = 0

    @property
    def kernel(self) -> str:
        """Its name without `_kernel`, or torch's operator."""
        return self.name.split()[0]

    @property
    def bytes(self) -> int:
        """Read and written."""
        return sum(self.reads.values()) + sum(self.writes.values())

    @property
    def workspace(self) -> int:
        """Those bytes among them that only the operation itself knows of."""
        return sum(side.get(name, 0) for side in (self.reads, self.writes) for name in WORKSPACE)


def route_forward(s: Shape, options: Options = PLAIN) -> Step:
    """Hidden states to weights, ids, log-sum-exp, load and the scanned histograms of chunks."""
    histograms = 4 * s.C * s.E
    reads = {"x": s.T * s.D * s.b, "gate": s.E * s.D * s.b, "chunk_starts": histograms, "ticket": 4}
    writes = {
        "weights": 4 * s.N, "ids": 4 * s.N, "lse": 4 * s.T, "chunk_starts": histograms, "ends": 4 * s.E,
        "load": 4 * s.E, "ticket": 4,
    }  # fmt: skip
    if options.biased:
        reads |= {"bias": 4 * s.E}
    if options.masked:
        reads |= {"mask": s.T, "chunk_load": histograms}
        writes |= {"chunk_load": histograms}
    if options.probabilities:
        reads |= {"chunk_probability": histograms}
        writes |= {"chunk_probability": histograms, "probability": 4 * s.E}
    return Step("route_forward", reads, writes, 2 * s.T * s.D * s.E)


def route_backward(s: Shape, options: Options = PLAIN) -> Step:
    """Gradients of logits and hidden states."""
    grad_logits = s.T * s.E * s.b
    reads = {
        "x": s.T * s.D * s.b, "gate": s.E * s.D * s.b, "lse": 4 * s.T, "ids": 4 * s.N, "weights": 4 * s.N,
        "grad_weights": 4 * s.N, "grad_logits": grad_logits,
    }  # fmt: skip
    if options.logsumexp_gradient:
        reads |= {"grad_lse": 4 * s.T}
    if options.probabilities:
        reads |= {"grad_probability": 4 * s.E}
        reads |= {"mask": s.T} if options.masked else {}
    return Step("route_backward", reads, {"grad_logits": grad_logits, "grad_x": s.T * s.D * s.b}, 4 * s.T * s.D * s.E)


def count_rows(s: Shape, num_chunks: int) -> Step:
    """Scanned histograms of bare ids, int32."""
    histograms = 4 * num_chunks * s.E
    reads = {"ids": 4 * s.N, "chunk_starts": histograms, "ticket": 4}
    return Step("count_rows", reads, {"chunk_starts": histograms, "ends": 4 * s.E, "ticket": 4})


def place_rows(s: Shape, num_chunks: int) -> Step:
    """Scanned histograms to the order of rows and its inverse."""
    reads = {"ids": 4 * s.N, "chunk_starts": 4 * num_chunks * s.E, "ends": 4 * s.E}
    return Step("place_rows", reads, {"order": 4 * s.N, "position": 4 * s.N})


def gather_rows(s: Shape, of: str) -> Step:
    """Tokens to the rows of their experts."""
    reads = {"source": s.T * s.D * s.b, "position": 4 * s.N, "last_end": 4}
    return Step(f"gather_rows {of}", reads, {"target": s.N * s.D * s.b})


def combine_rows(s: Shape, of: str, weighted: bool) -> Step:
    """Rows of experts to the sums of tokens."""
    reads = {"source": s.N * s.D * s.b, "position": 4 * s.N, "last_end": 4}
    reads |= {"weights": 4 * s.N} if weighted else {}
    return Step(f"combine_rows {of}", reads, {"target": s.T * s.D * s.b})


def swiglu(s: Shape) -> Step:
    """Pre-activation to activation."""
    return Step("swiglu", {"pre_activation": s.N * s.G * s.b, "last_end": 4}, {"activation": s.N * s.F * s.b})


def swiglu_backward(s: Shape) -> Step:
    """Gradients of pre-activation and routing weights, and the weighted activation."""
    rows = s.N * s.F * s.b
    reads = {"pre_activation": 2 * rows, "grad": rows, "order": 4 * s.N, "weights": 4 * s.N, "last_end": 4}
    writes = {"grad_pre_activation": 2 * rows, "weighted_activation": rows, "grad_weights": 4 * s.N}
    return Step("swiglu_backward", reads, writes)


def zero_empty_groups(s: Shape, of: str, size: int) -> Step:
    """Zeros to the gradients of experts without rows, `size` numbers each."""
    return Step(f"zero_empty_groups {of}", {"ends": 4 * s.E}, {"product": s.Z * size * s.b})


def rows_by_weights(s: Shape, of: str, inner: int, outer: int) -> Step:
    """Grouped GEMM of rows [N, inner] with each expert's matrix."""
    reads = {"rows": s.N * inner * s.b, "weights": s.E * inner * outer * s.b, "ends": 4 * s.E}
    return Step(f"grouped_mm {of}", reads, {"product": s.N * outer * s.b}, 2 * s.N * inner * outer)


def rows_by_rows(s: Shape, of: str, left: int, right: int) -> Step:
    """Grouped GEMM of rows [N, left], transposed, with rows [N, right]: the gradient of each expert's matrix."""
    reads = {"left": s.N * left * s.b, "right": s.N * right * s.b, "ends": 4 * s.E}
    return Step(f"grouped_mm {of}", reads, {"product": s.E * left * right * s.b}, 2 * s.N * left * right)


def forward(s: Shape, options: Options = PLAIN) -> list[Step]:
    """The launches of a layer from x to y, in order."""
    return [
        route_forward(s, options),
        place_rows(s, s.C),
        gather_rows(s, "x"),
        rows_by_weights(s, "up", s.D, s.G),
        swiglu(s),
        rows_by_weights(s, "down", s.F, s.D),
        combine_rows(s, "y", weighted=True),
    ]


def backward(s: Shape, options: Options = PLAIN) -> list[Step]:
    """The launches from the gradient of y to those of x and of the weights, in order."""
    tokens, logits, gate = s.T * s.D * s.b, s.T * s.E * s.b, s.E * s.D * s.b
    return [
        gather_rows(s, "dy"),
        rows_by_weights(s, "d activation", s.D, s.F),
        swiglu_backward(s),
        rows_by_rows(s, "d down", s.D, s.F),
        zero_empty_groups(s, "d down", s.D * s.F),
        gather_rows(s, "x"),
        rows_by_rows(s, "d gate_up", s.G, s.D),
        zero_empty_groups(s, "d gate_up", s.G * s.D),
        rows_by_weights(s, "dx", s.G, s.D),
        combine_rows(s, "dx", weighted=False),
        route_backward(s, options),
        Step("mm dW", {"grad_logits": logits, "x": tokens}, {"grad_gate": gate}, 2 * s.T * s.D * s.E),
        Step("add dx", {"left": tokens, "right": tokens}, {"sum": tokens}),
    ]


def sort_by_expert(s: Shape, rows_per_chunk: int) -> list[Step]:
    """The launches from bare ids to sorted rows."""
    num_chunks = -(-s.N // rows_per_chunk)
    return [count_rows(s, num_chunks), place_rows(s, num_chunks)]
