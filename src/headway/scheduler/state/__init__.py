"""What the writer owns: requests, slots, blocks, the queue. All of it changes here and nowhere else."""
