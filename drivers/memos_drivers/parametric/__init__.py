"""The parametric form: facts of texts distilled into LoRA adapters, checked, fused, attached and read back."""
