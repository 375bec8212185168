"""What comes from outside: arguments, files, pictures, tokenizers, published checkpoints. Read with care."""
