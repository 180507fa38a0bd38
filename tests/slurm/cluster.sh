#!/usr/bin/env bash
# A real Slurm for tests on this machine: munged, slurmctld and slurmd, without systemd, without a database.
#
#   cluster.sh start DIR [NODES]   the daemons keep all they write in DIR; then `. DIR/env.sh`
#   cluster.sh stop DIR            cancels what still runs, then ends the daemons whose pids stand in DIR/run
#   cluster.sh restart DIR         ends the controller and starts it again, with the queue as it was
#
# A node (one, if NODES does not say otherwise: n1, n2 ...) claims 16 CPUs, 128 GB and 2 GPUs (links to /dev/null),
# whatever the machine has. Partition `gpu` is the default; jobs of `urgent` preempt its jobs, which are requeued.
# Exit status 3: Slurm is not installed.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
ACTION=$1
PORT=${SLURM_TEST_PORT:-16817}
DIR=$(mkdir -p "$2" && cd "$2" && pwd)
export SLURM_CONF=$DIR/etc/slurm.conf

alive() {  # the process of a daemon, where it is still that daemon (that of node n1 is slurmd-n1)
	local pid
	pid=$(cat "$DIR/run/$1.pid" 2> /dev/null) && [ "$(cat "/proc/$pid/comm" 2> /dev/null)" = "${1%-*}" ] && echo "$pid"
}

end() {
	local pid
	pid=$(alive "$1") || return 0
	kill -TERM "$pid"
	for _ in $(seq 60); do kill -0 "$pid" 2> /dev/null || return 0; sleep 0.25; done
	kill -KILL "$pid"
}

wait_until_idle() {  # the clients hang for minutes without a controller: every call gets a timeout
	for _ in $(seq 80); do
		[ "$(timeout 5 sinfo -h -N -p gpu -o %T 2> /dev/null | sort -u)" = idle ] && return 0
		sleep 0.25
	done
	echo "the nodes are not idle after 20 s; see $DIR/log" >&2
	tail -n 5 "$DIR"/log/*.log >&2
	return 1
}

configure() {
	local host node user
	host=$(hostname -s)
	user=$(id -un)
	mkdir -p "$DIR"/{bin,dev,etc,log,munge,run,spool,state}
	chmod 755 "$DIR" "$DIR/run"
	chmod 700 "$DIR/munge"
	mungekey --create --keyfile "$DIR/munge/munge.key"
	ln -s /dev/null "$DIR/dev/gpu0"
	ln -s /dev/null "$DIR/dev/gpu1"
	cat > "$DIR/etc/slurm.conf" <<- CONF
		ClusterName=drill
		SlurmctldHost=$host(127.0.0.1)
		SlurmUser=$user
		SlurmdUser=$user
		AuthType=auth/munge
		# a requeued job waits as long as a credential lives: 20 s, not two minutes
		AuthInfo=socket=$DIR/run/munge.socket,cred_expire=20
		CredType=cred/munge
		SlurmctldPort=$PORT
		SlurmctldPidFile=$DIR/run/slurmctld.pid
		SlurmdPidFile=$DIR/run/slurmd-%n.pid
		SlurmctldLogFile=$DIR/log/slurmctld.log
		SlurmdLogFile=$DIR/log/slurmd-%n.log
		StateSaveLocation=$DIR/state
		SlurmdSpoolDir=$DIR/spool/%n
		MpiDefault=none
		MailProg=/bin/true
		# no cgroups: processes are known by their group, and memory is promised but not enforced
		ProctrackType=proctrack/pgid
		TaskPlugin=task/none
		SlurmdParameters=config_overrides
		SelectType=select/cons_tres
		SelectTypeParameters=CR_CPU_Memory
		SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=0,sched_min_interval=0
		PreemptType=preempt/partition_prio
		PreemptMode=REQUEUE
		AccountingStorageType=accounting_storage/none
		JobAcctGatherType=jobacct_gather/none
		JobCompType=jobcomp/none
		MinJobAge=300
		EnforcePartLimits=ALL
		KillWait=30
		JobRequeue=1
		ReturnToService=2
		GresTypes=gpu
		PartitionName=gpu Nodes=ALL Default=YES MaxTime=7-00:00:00 DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
		PartitionName=urgent Nodes=ALL MaxTime=60 DefaultTime=10 PriorityTier=10 PreemptMode=OFF
	CONF
	for node in $(seq "$1"); do
		mkdir "$DIR/spool/n$node"
		echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((PORT + node))" \
			"CPUs=16 RealMemory=131072 Gres=gpu:2 State=UNKNOWN" >> "$DIR/etc/slurm.conf"
	done
	echo "Name=gpu File=$DIR/dev/gpu[0-1]" > "$DIR/etc/gres.conf"
	printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' > "$DIR/etc/cgroup.conf"
	# Snakemake's plugins drop SLURM_* before they call Slurm from inside a job. These clients know the cluster
	# all the same, so that nothing need be written to /etc/slurm.
	for client in sacct sacctmgr sbatch scancel scontrol sinfo squeue srun sshare; do
		printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(command -v $client)" > "$DIR/bin/$client"
		chmod +x "$DIR/bin/$client"
	done
	echo "export PATH=$DIR/bin:\$PATH" > "$DIR/env.sh"
}

case $ACTION in
start)
	for program in munged mungekey slurmctld slurmd sbatch; do
		command -v $program > /dev/null || {
			echo "$program is missing: apt-get install -y --no-install-recommends slurm-wlm munge" >&2
			exit 3
		}
	done
	[ ! -e "$DIR/etc/slurm.conf" ] || { echo "$DIR holds a cluster already: stop it, and give a new folder" >&2; exit 4; }
	configure "${3:-1}"
	munged --force --key-file="$DIR/munge/munge.key" --socket="$DIR/run/munge.socket" --pid-file="$DIR/run/munged.pid" \
		--log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/seed" --num-threads=2
	slurmctld -c
	for node in $(seq "${3:-1}"); do slurmd -c -N "n$node"; done
	wait_until_idle || { "$0" stop "$DIR"; exit 5; }
	;;
stop)
	if alive slurmctld > /dev/null; then
		timeout 10 scancel --user="$(id -un)" || true
		for _ in $(seq 80); do
			[ -z "$(timeout 10 squeue -h -t R,CG 2> /dev/null)" ] && break
			sleep 0.5
		done
	fi
	for pid in "$DIR"/run/slurmd*.pid; do end "$(basename "$pid" .pid)"; done
	end slurmctld
	end munged
	;;
restart)
	end slurmctld
	sleep 5
	slurmctld
	;;
*)
	echo "usage: cluster.sh start|stop|restart DIR [NODES]" >&2
	exit 2
	;;
esac
