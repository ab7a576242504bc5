"""Federated LoRA fine-tuning of language models after FLoRIST (arXiv:2506.09199)."""
