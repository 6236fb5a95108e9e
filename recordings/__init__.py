"""All that touches a scanner's or a patient's file: formats, reading, channels, filters, markers."""
