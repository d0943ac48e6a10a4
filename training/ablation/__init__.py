"""Ablation studies: a base recipe, variants that switch one idea each, several seeds, and what each idea is worth."""
