"""What is kept beside a site: pooled sites, whiteners."""
