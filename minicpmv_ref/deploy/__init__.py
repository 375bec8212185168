"""From a trained model to a phone: block quantization, GGUF files, memory. Import the modules one by one."""
