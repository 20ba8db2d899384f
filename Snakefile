# The study that config/config.yaml names, from scans to report: `snakemake --cores all`.
# A root file that only includes would do nothing: included files never set the default target.
include: "workflow/Snakefile"


rule default:
    default_target: True
    input:
        rules.all.input,
