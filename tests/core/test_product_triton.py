"""The Triton kernels: right in Triton's interpreter, seen by compilers, built for a GPU, and run on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kindgene.core import linear
from kindgene.core.reference import model_reference

triton = pytest.importorskip("triton")

INTERPRETED = Path(__file__).with_name("interpreted_product.py")
FUSION = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset:UserWarning")


def test_in_triton_s_interpreter():
    """In a process of its own: triton reads the variable when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(INTERPRETED)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-2000:]


def test_a_cpu_never_imports_triton():
    code = """if True:
        import sys, torch
        before = "triton" in sys.modules
        from kindgene.core.bank import TailorBank
        from kindgene.core.gate import Gate
        from kindgene.core.linear import KindLinear
        gate = Gate()
        layer = KindLinear(4, 6, [2], [1], bias=True, gate=gate, name="layer")
        bank = TailorBank([0, 1], layer.piece_shapes, {})
        gate.bind(bank.select)
        with gate(torch.tensor([0, 2])):
            layer(torch.zeros(2, 3, 4)).sum().backward()
        print("triton" in sys.modules and not before, "kindgene.core.product_triton" in sys.modules)
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "False"]


class AnH100:
    """What Triton asks of a device when it compiles, or when torch looks at which arguments a kernel writes to."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def h100(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", AnH100())
    yield
    torch._dynamo.reset()


class SeenError(Exception):
    """Raised by a compiler that has seen enough: the kernels cannot run here."""


@FUSION
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiler_sees_the_kernels_and_what_each_of_them_writes(h100, toy_model, monkeypatch):
    """One graph of forward and backward; a kernel that was thought to write to its inputs would cost copies of them."""
    from torch._dynamo.backends.common import aot_autograd

    model = toy_model(torch.float32)
    monkeypatch.setattr(linear, "_takes_kernels", lambda x: True)
    seen = []

    def partition(joint, *_, **__):
        seen.append(joint)
        raise SeenError

    backend = aot_autograd(fw_compiler=lambda graph, _: graph, partition_fn=partition)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with pytest.raises(Exception, match="SeenError"):
        compiled(torch.randn(4, 6, requires_grad=True), torch.tensor([0, 3, 2, 2]))
    kernels = [node for node in seen[0].graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    written = [tuple(node.kwargs["tensors_to_clone"]) for node in kernels]
    contract, expand, gradient = ("h_ptr", "z_ptr"), ("y_ptr",), ("gradient_ptr",)
    assert written == [contract, expand, contract, expand, gradient, gradient]


BFLOAT16 = {
    "_contract": {"BLOCK_X": 128, "BLOCK_G": 64, "BLOCK_T": 64, "BLOCK_F": 64, "CHUNK": 16},
    "_expand": {"HAS_BIAS": True, "BLOCK_X": 128, "BLOCK_F": 256, "BLOCK_G": 64, "CHUNK": 16},
    "_tailor_gradient": {"BLOCK_T": 64, "BLOCK_F": 128, "CHUNK": 16},
}
WARPS = {"_contract": 4, "_expand": 8, "_tailor_gradient": 4}
OWN = {"own_ptr": "*fp32", "gradient_ptr": "*fp32", "scale_ptr": "*fp32"}
INDICES = {"row_ptr": "*i64", "order_ptr": "*i64", "start_ptr": "*i64"}


@FUSION
@pytest.mark.slow
@pytest.mark.parametrize("name", BFLOAT16)
def test_a_kernel_builds_for_an_h100(h100, name):
    """In bfloat16 with the tiles of DiT-B/4: it fits the shared memory of a block and uses tensor cores."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kindgene.core import triton_kernels

    kernel, blocks = getattr(triton_kernels, name), BFLOAT16[name]
    signature, attributes = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        pointer = {**OWN, **INDICES}.get(argument, "*bf16")
        kind = pointer if argument.endswith("_ptr") else "i32"
        signature[argument] = "constexpr" if argument in blocks else kind
        if argument.endswith(("_ptr", "_stride", "features", "_at")):
            attributes[(place,)] = [["tt.divisibility", 16]]
    constants = {(kernel.arg_names.index(key),): value for key, value in blocks.items()}
    built = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": WARPS[name], "num_stages": 3},
    )
    assert built.metadata.shared <= 227 * 1024
    assert "wgmma" in built.asm["ptx"] or "mma.sync" in built.asm["ptx"]
    assert built.asm["cubin"]


@pytest.fixture
def on_a_gpu(dit):
    """A model of 16 tokens, its batch, and labels, on the device."""
    model = dit.model(torch.float32, depth=2).cuda()
    x, t = (value.cuda() for value in dit.batch(torch.float32))
    return model, (x, t), torch.tensor([0, 5, 3, 3, 1, 5], device="cuda")


@pytest.mark.gpu
@FUSION
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("labels", [[0, 5, 3, 3, 1, 5], [5] * 6, [2] * 6], ids=["mixed", "null", "one"])
def test_a_model_on_a_gpu_is_its_reference(dit, on_a_gpu, monkeypatch, dtype, labels):
    """Through the kernels, whatever the numbers of tokens and the dtype."""
    monkeypatch.setattr(linear, "_takes_kernels", lambda x: x.shape[1] > 1)
    model, batch, _ = on_a_gpu
    labels = torch.tensor(labels)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        found = dit.run(model, batch, labels.cuda())
    found.float().square().sum().backward()
    gradients = {name: value.grad.cpu() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    model.cpu()
    args, kwargs = dit.arguments(*(value.cpu() for value in batch), labels)
    expected = torch.cat([dit.output(one) for one in model_reference(model, labels, *args, **kwargs)])
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    assert (found.cpu().float() - expected).norm() <= bound * expected.norm()
    expected.square().sum().backward()
    scale = torch.stack([value.grad.norm() for value in model.parameters() if value.grad is not None]).norm()
    for name, value in model.named_parameters():
        if value.grad is not None:
            assert (gradients[name] - value.grad).norm() <= 2 * bound * scale, name


@pytest.mark.gpu
@FUSION
def test_compiled_on_a_gpu_it_is_the_same(dit, on_a_gpu, monkeypatch):
    monkeypatch.setattr(linear, "_takes_kernels", lambda x: x.shape[1] > 1)
    model, batch, labels = on_a_gpu
    found = {}
    for name, call in {"eager": model, "compiled": torch.compile(model, fullgraph=True)}.items():
        with torch.autocast("cuda", torch.bfloat16):
            output = dit.run(call, batch, labels) if name == "eager" else call(*batch, labels)
        output.float().square().sum().backward()
        found[name] = [output.float(), *(value.grad for value in model.parameters() if value.grad is not None)]
        model.zero_grad()
    scale = torch.stack([value.norm() for value in found["eager"]]).norm()
    for one, other in zip(*found.values(), strict=True):
        assert (one - other).norm() <= 2e-2 * scale
    torch._dynamo.reset()


@pytest.mark.gpu
@FUSION
def test_on_a_gpu_the_sums_have_the_same_bits_every_time(dit, on_a_gpu, monkeypatch):
    monkeypatch.setattr(linear, "_takes_kernels", lambda x: x.shape[1] > 1)
    model, batch, labels = on_a_gpu
    grads = []
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            dit.run(model, batch, labels).float().square().sum().backward()
        grads.append([layer.u.grad.clone() for layer in model.layers.values()])
        model.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))
