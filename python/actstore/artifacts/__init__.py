"""Data derived from sites and stored beside them: pooled sites, whiteners."""
