"""CUDA drivers: the formulas of `kernels`, loops of their own.  Device arrays in and out.

The house rules of `kernels` hold; besides:

- `_shim` imports Numba's CUDA and levels what differs; `_driver` (or `_simulated`) is the card:
  memory, copies, launches.  Nothing compiles or asks for a driver when it is imported.
- Part of a warp (a group of lanes) owns a row or a bag, 16 bytes a lane where D is a multiple of 4,
  and keeps several rows in flight.  `_rows` holds the shape and the loads.
- No float atomics: a row has one owner, which adds in the contract's order.  Integer counts may be
  atomic, they have no order.
- No contraction to fma, correctly rounded sqrt and division: the bits of the CPU (`_shim`).
- Groups of lanes meet at `sync_lanes`, which every lane of a group reaches.  In the simulator a
  block is one group, so that its syncthreads stands for it.
- The simulator runs what does not compile, and the compiler takes what races: tests do both.
- Functions that call `cuda.*` live in the module of their kernel: the simulator swaps the name
  there and nowhere else.
"""
