# shellcheck shell=bash
# a container that calls home, and its published port: enforced, nothing of either leaves, and its program is told at once
#
# Expected, as the intruder sees it:
# - Before, the container's call reaches him, and he reaches its published port.
# - Enforced, he gets not one packet of it. The container's program is refused at once, and the report says which container it was.

call() { victim "docker exec web /bin/busybox timeout 20 /bin/busybox nc $INTRUDER 4444 2>&1; echo exit=\$?"; }
calls() { captured "$FROM_VICTIM and tcp dst port 4444"; }

step 'a container, its port, and its call'
victim 'touch /etc/lab-containers; systemctl start docker.service' || fail 'Docker does not start'
says sha256 victim 'mkdir -p /var/tmp/image/bin; cp /bin/busybox /var/tmp/image/bin; ln -sf busybox /var/tmp/image/bin/sh
    tar -C /var/tmp/image -c . | docker import - small'
# Without AppArmor's own tools Docker cannot load its profile.
says '^[0-9a-f]{64}$' victim "docker run -d --name web --security-opt apparmor=unconfined -p 8080:80 small /bin/busybox sh -c \
    'mkdir -p /www; echo From a container. > /www/index.html; exec /bin/busybox httpd -f -p 80 -h /www'"
until_says "$LIMIT" 'From a container' on intruder "curl -s -m 10 http://$VICTIM:8080/"
capture
listen
says 'exit=' call
more_than 2 "$(calls)" 'packets of the call at the intruder'

step 'enforced: nothing of it leaves, and its program is told'
enforce_lab_policy
frames=$(captured "$FROM_VICTIM")
says 'Connection refused' call
fails on intruder "curl -s -m 4 http://$VICTIM:8080/"
equal "$frames" "$(captured "$FROM_VICTIM")" 'packets from the victim that the intruder had got before, and has now'
# By its name, or where guard does not know that by its id.
id=$(victim "docker inspect -f '{{.Id}}' web" | tail -n 1)
until_says "$LIMIT" "web|${id:?}" victim "guard report | grep -A 2 'out tcp/4444 to $INTRUDER'"
