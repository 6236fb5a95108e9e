"""Files, locks and signals: what a process needs of the machine."""
