"""Where the fused teacher's hidden states come from: a cache on disk, or both models at every step."""
