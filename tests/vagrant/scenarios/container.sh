# shellcheck shell=bash
# a container that calls home
#
# Expected, as the intruder sees it:
# - Before, he has the container's call, and reaches its published port. Enforced, not a packet of it: it is told at once.

step 'a container, and its call'
image='mkdir -p /var/tmp/image/bin; cp /bin/busybox /var/tmp/image/bin; ln -sf busybox /var/tmp/image/bin/sh
    tar -C /var/tmp/image -c . | docker import - small'
victim 'touch /etc/lab-containers; systemctl start docker' || fail 'Docker does not start'
says sha256 victim "$image"
victim "docker run -d --name web -p 8080:80 small /bin/busybox sh -c 'mkdir -p /www; echo From a container. > /www/index.html
    exec /bin/busybox httpd -f -p 80 -h /www'" || fail 'the container does not start'
until_says 60 'From a container' on intruder "curl -s -m 10 http://$VICTIM:8080/"
listen
says exit=0 victim "docker exec web /bin/busybox nc -w 3 $INTRUDER 4444 < /dev/null > /dev/null; echo exit=\$?"

step 'enforced: it is told at once, and nothing of it leaves'
enforce_lab_policy
capture
says 'exit=1' victim "time docker exec web /bin/busybox timeout 10 /bin/busybox nc -w 8 $INTRUDER 4444 < /dev/null 2>&1; echo exit=\$?"
fails on intruder "curl -s -m 4 http://$VICTIM:8080/"
equal 0 "$(captured "$FROM_VICTIM")" 'packets from the victim at the intruder'
says 'out tcp.*4444|4444' victim 'guard flows'
