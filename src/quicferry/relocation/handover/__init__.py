"""The technique *handover*: connections go from process to process."""
