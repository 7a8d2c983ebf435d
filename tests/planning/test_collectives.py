"""What devices exchange: groups in each of the ways XLA writes them, and a real program counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rrm_jax.parallel.mesh import MeshShape, make_mesh
from rrm_jax.planning.collectives import Exchange, exchanges
from rrm_jax.planning.hlo import executed, parse

MESH = {"data": 2, "fsdp": 2, "tensor": 2}  # device 4 d + 2 f + t


def program(attributes: str, opcode: str = "all-gather") -> str:
    return f"""HloModule one

ENTRY %main (x: f32[4,8]) -> f32[8,8] {{
  %x = f32[4,8]{{1,0}} parameter(0)
  ROOT %y = f32[8,8]{{1,0}} {opcode}(%x), channel_id=1, {attributes}, dimensions={{0}}
}}
"""


@pytest.mark.parametrize(("groups", "axes", "devices"), [
    ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", "tensor", 2),
    ("replica_groups={{0,2,4,6},{1,3,5,7}}", "data × fsdp", 4),
    ("replica_groups={}", "data × fsdp × tensor", 8),
    ("replica_groups=[4,2]<=[8]", "tensor", 2),
    ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", "fsdp", 2),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", "data", 2),
    ("replica_groups=mesh['data'=2,'fsdp'=2,'tensor'=2] {'fsdp'}", "fsdp", 2),
    ("replica_groups=mesh['a'=8] {'a'}", "data × fsdp × tensor", 8),
    ("replica_groups=mesh['a'=8] {'a':(2)2}", "fsdp", 2),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]<=[2,4]T(1,0)) {'a'}", None, 2),
    ("replica_groups={{0,3},{1,2},{4,7},{5,6}}", "fsdp × tensor (in part)", 2),
    ("replica_groups=something new", "?", 8),
])  # fmt: skip
def test_groups_lie_along_axes(groups, axes, devices):
    (found,) = exchanges(program(groups), MESH)
    if axes is not None:
        assert found.axes == axes
    assert found.sent == 8 * 8 * 4 * (devices - 1) / devices


def test_bytes_of_each_kind():
    groups = "replica_groups={{0,1},{2,3},{4,5},{6,7}}"
    sent = {kind: exchanges(program(groups, kind), MESH)[0].sent for kind in ("all-reduce", "reduce-scatter")}
    assert sent == {"all-reduce": 2 * 256 / 2, "reduce-scatter": 256 / 2}
    (moved,) = exchanges(program("source_target_pairs={{0,2},{2,0},{1,3},{3,1}}", "collective-permute"), MESH)
    assert moved == Exchange("collective-permute", "fsdp", 1, 4 * 8 * 4)


BETWEEN = (
    'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    '_xla_host_transfer_rendezvous="one_0",_xla_megascale_target="{1,2,5}x{0:3}",_xla_megascale_transfer_type="%s"}'
)
SLICES = f"""HloModule several_slices

ENTRY %main (x: f32[4,8]) -> f32[12,8] {{
  %x = f32[4,8]{{1,0}} parameter(0)
  %token = token[] after-all()
  %send = (f32[4,8]{{1,0}}, u32[], token[]) send(%x, %token), channel_id=3, {BETWEEN % "ALL_GATHER"}
  %recv = (f32[12,8]{{1,0}}, u32[], token[]) recv(%token), channel_id=2, {BETWEEN % "ALL_GATHER"}
  %send.1 = (f32[4,8]{{1,0}}, u32[], token[]) send(%x, %token), channel_id=5, {BETWEEN % "ALL_REDUCE"}
  %recv.1 = (f32[4,8]{{1,0}}, u32[], token[]) recv(%token), channel_id=4, {BETWEEN % "ALL_REDUCE"}
  %other = (f32[4,8]{{1,0}}, u32[], token[]) send(%x, %token), channel_id=6, is_host_transfer=true
  ROOT %y = f32[4,8]{{1,0}} all-reduce(%x), channel_id=1, replica_groups={{{{0,1}},{{2,3}}}}, use_global_device_ids=true
}}
"""


def test_transfers_between_slices_are_the_collectives_that_they_make_up():
    """Three slices: of what is gathered two thirds come from elsewhere; a sum goes round twice."""
    found = {(one.kind, one.axes): one for one in exchanges(SLICES, {"data": 3, "fsdp": 2, "tensor": 2})}
    assert set(found) == {("all-gather", "slices"), ("all-reduce", "slices"), ("all-reduce", "tensor")}
    assert found["all-gather", "slices"] == Exchange("all-gather", "slices", 1, 12 * 8 * 4 * 2 / 3)
    assert found["all-reduce", "slices"] == Exchange("all-reduce", "slices", 1, 2 * 4 * 8 * 4 * 2 / 3)


def test_groups_of_one_exchange_nothing():
    assert exchanges(program("replica_groups=[8,1]<=[8]"), MESH) == []


LOOP = """HloModule loop

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8]{0} get-tuple-element(%s), index=1
  %two = s32[] constant(2)
  %kernel = f32[8]{0} custom-call(%x), custom_call_target="k", backend_config={
"metadata":"{}"
}}, metadata={op_name="a line that begins with a bracket"}
  %next = s32[] add(%i, %two)
  %sum = f32[8]{0} all-reduce(%kernel), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[8]{0}) tuple(%next, %sum)
}

%condition (s: (s32[], f32[8])) -> pred[] {
  %s.1 = (s32[], f32[8]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %n = s32[] constant(BOUND)
  ROOT %less = pred[] compare(%i.1, %n), direction=LT
}

ENTRY %main (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s.2 = (s32[], f32[8]{0}) parameter(0)
  ROOT %w = (s32[], f32[8]{0}) while(%s.2), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(("bound", "turns"), [("28", 14), ("7", 4), ("-1", 64)])
def test_turns_of_a_loop(bound, turns):
    """Counted by twos; and where the text does not tell, as often as the caller says."""
    (found,) = exchanges(LOOP.replace("BOUND", bound), MESH, turns=64)
    assert (found.kind, found.axes, found.count, found.sent) == ("all-reduce", "tensor", turns, turns * 32.0)
    times = {one.opcode: count for _, one, count in executed(parse(LOOP.replace("BOUND", bound)), 64)}
    assert times["custom-call"] == turns
    assert times["while"] == 1


def test_a_program_counted_by_hand():
    """A scan over 5 layers that are split over fsdp, with rows split as well: each layer is gathered once."""
    mesh = make_mesh(MeshShape(1, 4, 2))
    at = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))  # noqa: E731
    weights = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=at(None, "fsdp", None))
    x = jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=at(("data", "fsdp"), None))

    def run(weights, x):
        def layer(x, w):
            w = jax.lax.with_sharding_constraint(w, at())
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, weights)[0]

    with jax.set_mesh(mesh):
        text = jax.jit(run, out_shardings=x.sharding).lower(weights, x).compile().as_text()
    (gather,) = exchanges(text, dict(mesh.shape))
    assert gather == Exchange("all-gather", "fsdp", 5, 5 * 64 * 64 * 4 * 3 / 4)
