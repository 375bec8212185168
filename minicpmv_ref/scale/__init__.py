"""The engine around `learn`: your own data, LoRA, training that resumes, many processes."""
