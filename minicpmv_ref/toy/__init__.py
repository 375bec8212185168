"""A small synthetic world: scenes, documents, questions and answers, drawn from a seed."""
