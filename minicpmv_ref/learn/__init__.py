"""The paper's training, to be read alone: packing, stages, losses, a plain loop, contrast, grades, DPO and RLAIF-V."""
