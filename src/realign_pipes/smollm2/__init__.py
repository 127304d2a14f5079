"""SmolLM2-135M-Instruct as a slow thinker: its conversion, its word problems and traces, and its two models."""
