"""Tables on NVIDIA GPUs: the operations, batches and results of device="cuda"."""
