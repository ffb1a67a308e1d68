# SOURCE_HOST/NAME. The source host's definition tells the rest, so the next plan is empty.
terraform import lockstep_pair.data nfs01/data
