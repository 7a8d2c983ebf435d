"""Trees that wait in host memory while the devices have no use for them."""

from typing import Any

import jax

HOST = "pinned_host"  # JAX's name for host memory that a device copies from and to by itself


def to_host(tree: Any) -> Any:
    """Moves arrays from the devices to the memory of their hosts; the device copies are deleted.

    Every device's shard goes to its own host, so that shardings stay what they were (but for the kind of memory) and
    no process sees another's part: all processes call this alike. Values and dtypes, PRNG keys among them, are kept
    bit for bit. The tree may be saved as it is; for computing, bring it back by `to_device`. What is on the host
    already, or on a device that has no such memory, stays as it is.

    Tested on CPU, with 8 devices and with 2 processes, where both kinds of memory are the host's: values, shardings,
    kinds and deletion. That the bytes leave an accelerator was not measured.
    """
    return _move(tree, jax.tree.map(lambda x: _in_host_memory(x.sharding), tree))


def to_device(tree: Any, shardings: Any) -> Any:
    """Moves what `to_host` gave back to device memory, placed by a tree of shardings; the host copies are deleted."""
    return _move(tree, shardings)


def _in_host_memory(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    kinds = {memory.kind for device in sharding.addressable_devices for memory in device.addressable_memories()}
    return sharding.with_memory_kind(HOST) if HOST in kinds else sharding


def _move(tree: Any, shardings: Any) -> Any:
    moved = jax.device_put(tree, shardings)
    # Donation does not reach across kinds of memory. Deleting waits for the copy, and is for the runtime to time.
    jax.tree.map(lambda old, new: None if old is new else old.delete(), tree, moved)
    return moved
