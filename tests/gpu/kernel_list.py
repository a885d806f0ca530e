"""Every CUDA kernel with the types it is launched with: what the PTX tests compile."""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import types

from sparse_embed.kernels import plan
from sparse_embed.kernels.cuda import (
    backward,
    batches,
    bpr,
    contrast,
    dots,
    hashing,
    lookup,
    many,
    merge,
    pairs,
    records,
    sampling,
    slots,
    sort,
    topk,
    update,
)


class Entry(NamedTuple):
    """A kernel, what it is called, its arguments, whether it may hold float64."""

    name: str
    kernel: Any
    signature: Any
    doubles: bool = False


def _array(letter: str, dims: int) -> types.Array:
    scalar = {
        "f4": types.float32, "f8": types.float64, "i8": types.int64, "i4": types.int32,
        "u8": types.uint64, "u1": types.uint8,
    }[letter]  # fmt: skip
    return types.Array(scalar, dims, "C")


f4, i8, u8, u1, flag = types.float32, types.int64, types.uint64, types.uint8, types.boolean
F1, F2, I1, I2 = _array("f4", 1), _array("f4", 2), _array("i8", 1), _array("i8", 2)
U1, U2, B1, B2, C1, D1 = (
    _array("u8", 1), _array("u8", 2), _array("u1", 1), _array("u1", 2), _array("i4", 1),
    _array("f8", 1),
)  # fmt: skip
INIT = (u8, i8, f4)
STEPS = types.UniTuple(i8, 4)
SCALARS = types.UniTuple(f4, 9)
NARROW = (
    ("bfloat16", "bfloat16", "stochastic"),
    ("float16", "float32", "stochastic"),
    ("float16", "bfloat16", "nearest"),
    ("float32", "bfloat16", "nearest"),
)
ENTRIES = (I1, I1, F1, F1, STEPS)


def _of_dim(dim: int) -> list[Entry]:
    found = [
        ("initialize", lookup.initialize_cuda(dim), (I1, *INIT, F2)),
        ("gather", lookup.gather_cuda(dim), (F2, I1, I1, i8, I1, *INIT, F2)),
        ("pool", lookup.pool_cuda(dim), (F2, I1, I1, I1, F1, i8, i8, i8, I1, *INIT, F2)),
        ("max_positions", lookup.max_positions_cuda(dim), (F2, I1, I1, I1, i8, *INIT, I2)),
        ("dots", dots.dots_cuda(dim), (F2, I1, I1, F2, I1, i8, i8, *INIT, F1)),
        ("norms", topk.norms_cuda(dim), (F2, F1)),
        ("scores", topk.scores_cuda(dim), (F2, F2, i8, F1, F1, F2)),
        ("bpr_slopes", bpr.slopes_cuda(dim), (F2, I1, F2, I1, F1, F1)),
        ("units", contrast.units_cuda(dim), (F2, F1)),
        ("changes", contrast.changes_cuda(dim), (i8, F2, F2, F2, F1, F2)),
        ("sums", contrast.sums_cuda(dim), (i8, F2, F2, F2)),
    ]
    for unit in (False, True):
        end = "_unit" * unit
        pair, own = (i8, F2, F2, F2, F1, F2), (f4, F2, F2, F1, F1, F2, F1, F1)
        found += [
            (f"pair_scores{end}", contrast.scores_cuda(dim, unit), pair),
            (f"finish_own{end}", contrast.finish_own_cuda(dim, unit), own),
            (f"finish_others{end}", contrast.finish_others_cuda(dim, unit), (f4, F2, F2, F1)),
        ]
    for winners in (False, True):
        found += [
            (
                f"hot_sums{'_max' * winners}",
                backward.hot_sums_cuda(dim, winners),
                (I1, I1, I1, I1, i8, i8, *ENTRIES, I2, F2, F2),
            ),
            (
                f"backward{'_max' * winners}",
                backward.backward_cuda(dim, winners),
                (I1, F2, I1, I1, *ENTRIES, I2, F2, F2),
            ),
        ]
    step = (F2, B1, I1, I1, i8, i8, I1, I1, F2, I1, *ENTRIES, F2, SCALARS, u8, *INIT)
    for name in update.NAMES:
        if not name.startswith("row_wise"):
            found.append((f"columns_{name}", update.update_columns_cuda(dim, name), step))
        found.append((f"rows_{name}", update.update_rows_cuda(dim, name), (*step, F1)))
    for dtype in ("float16", "bfloat16", "int8"):
        gather, pool = lookup.gather_cuda(dim, dtype), lookup.pool_cuda(dim, dtype)
        at_max = lookup.max_positions_cuda(dim, dtype)
        found += [
            (f"{dtype}_gather", gather, (F2, I1, I1, i8, I1, *INIT, F2)),
            (f"{dtype}_pool", pool, (F2, I1, I1, I1, F1, i8, i8, i8, I1, *INIT, F2)),
            (f"{dtype}_max_positions", at_max, (F2, I1, I1, I1, i8, *INIT, I2)),
            (f"{dtype}_dots", dots.dots_cuda(dim, dtype), (F2, I1, I1, F2, I1, i8, i8, *INIT, F1)),
        ]
    for dtype, state_dtype, rounding in NARROW:
        how = (dtype, state_dtype, rounding)
        columns = update.update_columns_cuda(dim, "lazy_adam", *how)
        rows = update.update_rows_cuda(dim, "row_wise_adam", *how)
        found.append((f"{dtype}_{state_dtype}_{rounding}_lazy_adam", columns, step))
        found.append((f"{dtype}_{state_dtype}_{rounding}_row_wise_adam", rows, (*step, F1)))
    return [Entry(f"{name}-{dim}", kernel, types.void(*args)) for name, kernel, args in found]


def _of_any_dim() -> list[Entry]:
    found = [
        ("survey", batches.survey_cuda(), (I1, i8, i8, flag, I1, flag, I1)),
        ("bag_ids", batches.bag_ids_cuda(), (I1, I1)),
        ("bag_scales", batches.bag_scales_cuda(), (I1, I1, F1, i8, i8, i8, F1)),
        ("dropout_scale", batches.dropout_scale_cuda(), (u8, u8, u8, f4, F1)),
        ("scan", merge.scan_cuda(), (I1, I1)),
        ("sum_tiles", merge.sum_tiles_cuda(), (I1, I1)),
        ("scan_tiles", merge.scan_tiles_cuda(), (I1, I1)),
        ("count_digits", sort.count_digits_cuda(False), (U1, i8, i8, u8, i8, I1)),
        ("count_digits_first", sort.count_digits_cuda(True), (I1, i8, i8, u8, i8, I1)),
        ("scan_digits", sort.scan_digits_cuda(), (I1, i8, I1)),
        ("scatter_digits", sort.scatter_digits_cuda(False), (U1, i8, i8, u8, i8, I1, I1, U1)),
        ("scatter_digits_first", sort.scatter_digits_cuda(True), (I1, i8, i8, u8, i8, I1, I1, U1)),
        ("count_heads", merge.count_heads_cuda(), (U1, i8, u8, I1, I1)),
        (
            "write_segments",
            merge.write_segments_cuda(backward.HOT, plan.BLOCK),
            (U1, i8, u8, I1, I1, I1, I1, I1, I1, I1, I1, I1, flag, I1, I1),
        ),
        ("count_flagged", merge.count_flagged_cuda(), (B1, i8, u1, flag, I1)),
        ("write_flagged", merge.write_flagged_cuda(), (B1, i8, u1, flag, I1, I1)),
        ("weights_grad", dots.weights_grad_cuda(), (F1, I1, I1, F1, i8, i8, i8, F1)),
        ("merge_top_k", topk.merge_top_k_cuda(), (F2, I1, flag, I2, F2, I2, F2)),
        ("gather_records", records.gather_records_cuda(), (F2, I1, F2)),
        ("scatter_records", records.scatter_records_cuda(), (F2, I1, F2)),
        ("raise_flags", records.raise_flags_cuda(), (B1, I1, u1)),
        ("turn_flags", records.turn_flags_cuda(), (B1, i8, u1, u1)),
        ("missing", records.missing_cuda(), (B1, I1, i8, B1)),
        ("count", records.count_cuda(), (I1,)),
        ("take", records.take_cuda(), (I1, I1, I1)),
        ("sample_shared", sampling.sample_shared_cuda(), (u8, u8, U1, I1)),
        ("hash_strings", hashing.hash_strings_cuda(), (B1, I1, U2, u8, I2)),
    ]
    found += [
        (
            "number_keys",
            many.number_keys_cuda(),
            (I1, I1, I1, i8, I1, I1, I1, I1, I1, I1, I1, I1),
        ),
        ("scale_bags", many.scale_bags_cuda(), (I1, I1, i8, I1, I1, I1, I1, F1, i8, F1)),
        ("cut_keys", many.cut_keys_cuda(), (I1, I1, I1, I1)),
        ("rows_of_keys", many.rows_of_keys_cuda(), (I1, I1, I1, I1)),
        ("side_by_side", many.arrange_columns_cuda(True), (F1, F2, I1, I1, I1)),
        ("apart", many.arrange_columns_cuda(False), (F1, F2, I1, I1, I1)),
        ("sample_pairs", pairs.sample_pairs_cuda(), (u8, u8, u8, C1, C1, I1, I1)),
        ("mark_taken", pairs.mark_taken_cuda(), (i8, I1, I2, I1, C1, B1, B2)),
        ("repeat", pairs.repeat_cuda(), (I1, I1)),
        ("take_floats", records.take_cuda(), (F1, I1, F1)),
        ("scale_columns", bpr.scale_columns_cuda(), (F2, F2)),
        ("bpr_differences", bpr.differences_cuda(), (F2, I1, I1, F2)),
        ("bpr_user_sums", bpr.user_sums_cuda(), (f4, I1, F2, F2, F1, F2)),
        ("bpr_upstream", bpr.upstream_cuda(), (F2, I1, I1, I1, I1, F1, F2)),
        ("bpr_penalize", bpr.penalize_cuda(), (f4, I1, F2, F2)),
        (
            "find_slots",
            slots.find_slots_cuda(),
            (I1, C1, I1, i8, i8, C1, I1, I1, I1, I1),
        ),
        ("look_up_slots", slots.look_up_slots_cuda(), (I1, C1, I1, I1)),
        ("admit", slots.admit_cuda(), (I1, C1, I1, I1, B1, i8, I1, C1, C1, B1)),
        ("dismiss", slots.dismiss_cuda(), (I1, I1, I1, B1)),
        ("index_again", slots.index_again_cuda(), (I1, C1, I1, i8)),
        ("mark_idle", slots.mark_idle_cuda(), (I1, C1, C1, i8, i8, B1)),
        ("pass_hand", slots.pass_hand_cuda(), (C1, C1, i8, i8)),
        ("choose", slots.choose_cuda(), (I1, i8, i8, C1, I1)),
        ("describe", slots.describe_cuda(), (I1, I1, B1, I1, B1)),
        ("clear_records", slots.clear_records_cuda(), (F2, I1)),
    ]
    for scheme in hashing.SCHEMES:
        found.append((f"hash_ids_{scheme}", hashing.hash_ids_cuda(scheme), (U1, U2, u8, I2)))
    listed = [Entry(name, kernel, types.void(*args)) for name, kernel, args in found]
    slope = types.void(i8, f4, f4, F1, F2, B2, F1, F1, F1, D1)
    sums = bpr.sum_losses_cuda()
    exact = [
        ("sum_losses", sums, types.void(F1, i8, D1)),
        ("sum_more", sums, types.void(D1, i8, D1)),
    ]
    exact += [(f"slopes_{name}", contrast.slopes_cuda(name), slope) for name in contrast.LOSSES]
    # Losses are added up in float64, as on the CPU.
    return listed + [Entry(*entry, True) for entry in exact]


def entries(dims: tuple[int, ...]) -> list[Entry]:
    """All kernels; those that depend on D for these."""
    return _of_any_dim() + [entry for dim in dims for entry in _of_dim(dim)]
