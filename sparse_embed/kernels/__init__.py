"""Numba kernels: arrays in, arrays out.  No classes, no checks, no files; `ops` is their door.

House rules, each of them bought with a measurement or a bug:

- One operation, one file: constants, formulas (`device_function`), driver.
- Literals decide the type: `1 - beta` with a float32 `beta` is float64, and `uint64 + int64` is not
  uint64.  Every constant is a typed module constant (`ONE = np.float32(1)`).
- A loop-invariant branch inside a hot loop costs compile time: LLVM copies the loop for each side.
  Absent arrays are one element and a step of 0 (`backward.sum_block`).
- Drivers are closures specialised on `embedding_dim` (a run-time D costs 22 to 82 %), made by a
  cached factory that closes over `DIGEST` (see `_jit`), so the on-disk cache is never stale.
- Work is cut into chunks by its size, never by the number of threads; threads take chunks from a
  counter (`_intrinsics.next_chunk`).  A chunk's result does not depend on who computes it.
- No fastmath, no contraction: the order of additions is part of the contract (`reference`).
- `None` does not travel: an absent array is one of length 0, or of 1 and a step of 0.
- float32 rows are walked by raw pointer (`row_pointer`): no negative-index test in inner loops.
"""
