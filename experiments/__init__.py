"""The stages as scripts, and the pipeline that runs them one after the other."""
