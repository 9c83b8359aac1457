"""The logit lens for LLaVA behind `lens_utils`: `docs/` says how it works."""
