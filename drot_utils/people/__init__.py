"""Appendix B: the forms that people fill, the tools they fill them in, and what their votes say."""
