"""Several processes as one run: started and joined through torch's elastic launcher, kept in step, torn down."""
