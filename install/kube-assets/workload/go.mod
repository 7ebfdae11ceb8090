module cilia.invalid/kube-assets/workload

go 1.24.0
