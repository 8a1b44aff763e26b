"""A plan as text."""

from collections.abc import Mapping

from fusionx_jax.types import Json


def show(found: Mapping[str, Json], name: str, epochs: float) -> str:
    """A plan as text for a terminal. `name` is that of the machine."""
    m = {k: v / 2**30 for k, v in found["memory_per_device"].items()}
    mesh = " x ".join(f"{k} {v}" for k, v in found["mesh"].items())
    collectives = [
        f"{c['per_step']} {c['kind']} over {' x '.join(c['axes'])}, {c['bytes_per_step'] / 1e6:.1f} MB"
        for c in found["collectives"]
    ]
    bounds = ", ".join(f"{k} {1e3 * v:.2f} ms" for k, v in found["roofline_s"].items())
    remat = ""
    if found["flops_per_step_with_remat"] > 1.001 * found["flops_per_step"]:
        remat = f" ({found['flops_per_step_with_remat'] / 1e12:.2f} T with rematerialization)"
    refused = found.get("refused_batch_sizes", [])
    lines = [
        f"{name}: {found['chips']} chips, {found['devices']} devices, {found['hosts']} hosts; mesh {mesh}",
        f"network       {found['parameters'] / 1e6:.1f} M parameters, batch {found['batch_size']}; compiled in "
        f"{found['compile_s']:.0f} s",
        f"memory        per device: parameters {m['params']:.2f} GiB, optimizer {m['opt_state']:.2f}, activations and "
        f"temporaries {m['activations_and_temporaries']:.2f}",
        f"              peak {m['peak']:.2f} of {m['available']:.1f} GiB available: "
        f"{'fits' if found['fits'] or refused else 'DOES NOT FIT'}; largest batch about {found['largest_batch_size']}",
        f"FLOPs         {found['flops_per_pair'] / 1e9:.2f} G per pair, {found['flops_per_step'] / 1e12:.2f} T per step"
        + remat,
        f"collectives   {'; '.join(collectives) or 'none'}",
        f"roofline      {bounds}; bound by {found['bound']}",
        f"at best       {1e3 * found['step_s']:.2f} ms per step, {found['pairs_per_s']:.0f} pairs/s, MFU "
        f"{100 * found['mfu_at_roofline']:.0f} %; input {found['input_bytes_per_s_per_host'] / 1e6:.0f} MB/s per host",
    ]
    if refused:
        lines.insert(
            0, f"batch {refused[0]} DOES NOT FIT: the compiler refused it; the figures are for {found['batch_size']}"
        )
    if found.get("days"):
        hours = found["days"] * found["chips"] * 24
        days = f"{found['days']:.1f} days" if found["days"] >= 1 else f"{24 * found['days']:.2f} hours"
        lines.append(f"{epochs:g} epochs    {days} at best, {hours:.0f} chip hours")
    return "\n".join(lines)
