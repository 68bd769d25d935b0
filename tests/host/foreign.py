# SPDX-License-Identifier: Apache-2.0
"""Rules that firewalld and docker have on a node (nft(8))."""

FOREIGN = """
table inet firewalld {
  chain filter_INPUT { type filter hook input priority filter + 10; policy accept;
    ct state established,related accept
    ct status dnat accept
    iifname "lo" accept
    udp dport 4789 accept
    meta l4proto { icmp, ipv6-icmp } accept
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;
    ct state established,related accept
    ct status dnat accept
    reject with icmpx admin-prohibited
  }
}
table ip filter {
  chain DOCKER-USER { return; }
  chain FORWARD { type filter hook forward priority filter; policy drop;
    jump DOCKER-USER
    iifname "docker0" accept
  }
}
table ip nat {
  chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept;
    ip saddr 172.17.0.0/16 oifname != "docker0" masquerade
  }
}
"""
