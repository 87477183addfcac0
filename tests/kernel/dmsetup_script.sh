$DM version
$DM --version
$DM targets
$DM target-version linear zero
$DM target-version nonsense
$DM target-version
$DM ls
$DM info
$DM info -c
$DM table
$DM status
$DM deps
$DM ls --tree
$DM mangle

$DM create lin --table "0 1000 linear $A 8"
$DM create lin --table "0 1000 linear $A 8"
$DM create with-uuid -u DMCORE-1234 --table "0 100 linear $A 2048"
$DM create other -u DMCORE-1234 --table '0 8 zero'
$DM create three < $T/three
$DM create striped $T/table
$DM create nowhere $T/nonexistent
$DM create bare --notable
$DM create bare2 -n -u DMCORE-bare
$DM create ro -r --table "0 64 linear $B 0"
$DM create minor -j 254 -m 77 --table '0 8 zero'
$DM create minor2 -j 254 -m 77 --table '0 8 zero'
$DM create minor3 -m 78 --table '0 8 zero'
$DM create minor4 -j 0 -m 78 --table '0 8 zero' 2> /dev/null; status=$?; dmsetup remove minor4 2> /dev/null; exit $status
$DM create ahead --readahead 1024 --table "0 64 linear $B 0"
$DM create ahead2 --readahead none --table "0 64 linear $B 0"
$DM create ahead3 --readahead +4 --table "0 64 linear $B 0"
$DM create ahead4 --readahead +511 --table "0 64 linear $B 0"
$DM create ahead5 --readahead -7 --table "0 64 linear $B 0"
$DM create on-create --addnodeoncreate --table '0 8 zero'
$DM create on-resume --addnodeonresume --table '0 8 zero'
$DM create on-both --addnodeonresume --addnodeoncreate --table '0 8 zero'
$DM create empty < /dev/null
$DM create verbose -v --table '0 8 zero'

$DM create
$DM create a/b --table '0 8 zero'
$DM create a b c
$DM create bad --table '0 8'
$DM create bad --table '0 8 nonsense'
$DM create bad --table 'words words words'
$DM create bad --table '0 8 averylongtargetname x'
$DM create bad --table "0 8 linear /dev/nonexistent 0"
$DM create bad --table "0 8 linear $A"
$DM create bad --table "8 8 linear $A 0"
$DM create bad --table "0 0 linear $A 0"
$DM create bad --table "0 99999999 linear $A 0"
$DM create bad --table '0 8 zero' --notable
$DM create bad -M 9 --table '0 8 zero'
$DM create bad -m 4 -j
$DM create '' --table '0 8 zero'
$DM create aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa --table '0 8 zero'
$DM create aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa --table '0 8 zero'
$DM remove aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa

$DM ls
$DM ls -o blkdevname
$DM ls -o devname
$DM ls -o devno
$DM ls -o dev
$DM ls -o nonsense
$DM ls --target linear
$DM ls --target zero --exec 'echo found'
$DM ls --target nothing
$DM ls --exec 'test -b' -v
$DM ls lin

$DM info lin
$DM info bare
$DM info -v lin
$DM info nonexistent
$DM info lin with-uuid
$DM info -u DMCORE-1234
$DM info -u DMCORE-none
$DM info -j 254 -m 77
$DM info -j 254
$DM info /dev/mapper/lin
$DM info mapper/lin
$DM info /dev/null
$DM info -c

# format
$DM info -C lin three
$DM info -c nonexistent
$DM info -c --noheadings
$DM info -c --noheadings -o name,uuid,devno --separator /
$DM info -c -o name,open,segments,events,attr,tables_loaded,suspended,readonly,devno,blkdevname
$DM info -c -o +read_ahead,mangled_name,unmangled_uuid lin with-uuid
$DM info -c -o name --sort -name
$DM info -c -o name,minor -O +minor
$DM info -c -o name -O -segments,name
$DM info -c -o Device_Count,devs_used,devnosused,blkdevs_used,name
$DM info -c -o name,device_ref_count,names_using_dev,devnos_using_dev
$DM info -c -o subsystem,vg_name,lv_name,lv_layer,name
$DM info -c -o name_all
$DM info -c -o deps_all,tree_all --noheadings
$DM info -c --nameprefixes -o name,major,minor
$DM info -c --nameprefixes --noheadings --unquoted -o name,minor,uuid
$DM info -c --rows -o name,minor
$DM info -c --rows --nameprefixes --noheadings -o name,minor -O name
$DM info -c --unbuffered -o name,uuid
$DM info -c -o name,selected -S 'name=lin'
$DM info -c -o name -S 'name=~"^ahead[23]$"'
$DM info -c -o name -S 'segments>1 && name!=three'
$DM info -c -o name -S 'segments>=2||uuid=~DMCORE'
$DM info -c -o name -S '!(segments=1),minor<100'
$DM info -c -o name -S "(name=lin # name='ro') && attr=L--w"
$DM info -c -o name -S 'minor=77'
$DM info -c -o name -S 'name<lin' > /dev/null 2>&1
$DM info -c -o name -S 'nonsense=1' > /dev/null 2>&1
$DM info -c -o name -S 'minor=x' 2> /dev/null
$DM info -c -o name -S 'name=lin &&' 2> /dev/null
$DM info -c -o name -S 'name="lin' 2> /dev/null
$DM info -c -o name -S 'name=lin)' 2> /dev/null
$DM info -c -o nonsense 2> /dev/null
$DM info -c -O nonsense 2> /dev/null
$DM info -c -o help 2> /dev/null
$DM info -c -S help 2> /dev/null
$DM info -c -o name --count 2 --interval 1 lin
$DM info -c -o name -O name,name

$DM table
$DM table three
$DM table lin striped
$DM table --target zero
$DM table --target zero three
$DM table nonexistent
$DM table bare
$DM table -v three
$DM table --inactive three
$DM table --concise
$DM table --concise lin with-uuid ro
$DM table --concise three bare
$DM table -S 'name=lin'
$DM table --exec 'echo x' lin
$DM status
$DM status --noflush lin
$DM status --target striped
$DM status nonexistent
$DM status -u DMCORE-1234
$DM status bare
$DM deps
$DM deps striped
$DM deps -o blkdevname striped
$DM deps -o devname striped three
$DM deps -o nonsense striped
$DM deps bare
$DM deps -v lin
$DM deps nonexistent
$DM measure bare

$DM load lin --table "0 2000 linear $B 8"
$DM info lin
$DM table --inactive lin
$DM table lin
$DM status --inactive
$DM deps --inactive lin
$DM info -c --inactive lin
$DM clear lin
$DM clear lin nonexistent
$DM info -c -o name,tables_loaded lin
$DM reload lin --table "0 2000 linear $B 8"
$DM suspend lin
$DM info lin
$DM resume lin
$DM table lin
$DM reload -r lin --table "0 2000 linear $B 16"; $DM suspend --nolockfs --noflush lin; $DM resume --noflush lin; $DM info lin
$DM reload lin $T/table; $DM clear lin
$DM reload lin < $T/table; $DM clear lin
$DM reload -u DMCORE-1234 --table '0 100 zero'
$DM resume -u DMCORE-1234
$DM reload -j 254 -m 77 --table '0 16 zero'; $DM resume -j 254 -m 77
$DM load
$DM load nonexistent --table '0 8 zero'
$DM load lin --notable
$DM load lin a b
$DM load -u DMCORE-1234 a b
$DM reload lin --table '0 8 zero junk'
$DM suspend nonexistent
$DM suspend
$DM suspend lin with-uuid three; $DM info -c -o name,suspended; $DM resume lin with-uuid three
$DM suspend -S 'name=~^ahead'; $DM info -c -o name,suspended; $DM resume -S 'suspended=Suspended'; $DM info -c -o name,suspended
$DM resume -v lin
$DM resume --readahead 64 lin; $DM info lin

$DM message lin 0 hello
$DM message lin x hello
$DM message lin 0
$DM message lin
$DM message nonexistent 0 hello
$DM message lin 0 @stats_list
$DM message lin 0 @stats_create - /1
$DM message lin 0 @stats_list
$DM message lin 0 @stats_print 0 | wc -l
$DM message -u DMCORE-1234 0 @stats_list

$DM stats create
$DM stats create lin
$DM stats create lin three
$DM stats create --areas 4 --programid other --userdata word lin
$DM stats create --areasize 64k --start 128s --length 256k lin
$DM stats create --areasize 64 lin
$DM stats create --precise --bounds 10us,20,5ms lin
$DM stats create --bounds 10ms,20ms lin
$DM stats create --segments --alias parts three
$DM stats create --segments --nogroup --userdata word three
$DM stats create -u DMCORE-1234
$DM stats create bare nonexistent
$DM stats create --areas 2 --areasize 64k lin
$DM stats create --areasize x lin
$DM stats create --areasize 100b lin
$DM stats create --bounds 10ms,,20ms lin 2> /dev/null
$DM stats create --bounds 10xs lin 2> /dev/null
$DM stats create --bounds 20ms,10ms lin
$DM stats create --programid '' lin
$DM stats create --programid '' --force lin; $DM stats delete --allprograms --allregions with-uuid
$DM stats create --programid 7 lin
$DM stats create --userdata 'two words' lin
$DM stats create --allregions lin
$DM stats create --alias x --nogroup lin
$DM stats create --allregions --regionid 1 lin
$DM stats list
$DM stats list lin three
$DM stats list bare
$DM stats list lin nonexistent
$DM message lin 0 @stats_list; $DM message three 0 @stats_list
$DM stats group --regions 0,2-3 lin
$DM stats group --regions 0,1,5 --alias some lin
$DM stats group --regions 4,5 lin
$DM stats group --regions 4,9 lin
$DM stats group --regions 3-1 lin
$DM stats group --regions 99 lin
$DM stats group --regions x lin
$DM stats group --regions 4-5 bare
$DM stats group --regions 4,6-7 lin
$DM message lin 0 @stats_list; $DM stats list lin
dd if=/dev/mapper/lin of=/dev/null bs=4k count=5 iflag=direct status=none; $DM stats print --regionid 0 lin | cut -d ' ' -f 1-4,6-8
$DM stats report -o region_id,area_id,read_count,read_sector_count,reads_per_sec,read_size_per_sec,avg_request_size,writes_per_sec lin

# format
$DM stats list --area
$DM stats list --region -O -region_len
$DM stats list --allprograms
$DM stats list --programid other
$DM stats list -v
$DM stats list -v --histogram
$DM stats list --histogram
$DM stats list --histogram --notimesuffix --noheadings lin
$DM stats list --units s
$DM stats list --units H --area lin
$DM stats list --units r lin
$DM stats list --units 3K lin
$DM stats list --units x lin
$DM stats list -o all -S 'region_id=4 && obj_type=region' lin
$DM stats list -o id,start,userdata,precise lin three
$DM stats list -o +name,major,user_data,hist_ranges lin
$DM stats list -o region_all --noheadings -S 'area_count>1 || obj_type=group' lin three
$DM stats list -o nonsense 2> /dev/null
$DM stats list -S 'region_len>=256k' -o region_id,region_len lin
$DM stats list -S 'region_len<1' -o region_id,region_len lin
$DM stats list -S 'region_id=2 || obj_type=group'
$DM stats list -u DMCORE-1234
$DM stats list --nameprefixes --noheadings lin
$DM stats list --allprograms --programid x
$DM stats report
$DM stats report --region -o region_id,region_start,region_len,area_id,area_len,area_count,read_count
$DM stats report --area --units s lin
$DM stats report --raw lin
$DM stats report --histogram
$DM stats report --histogram --relative lin
$DM stats report --histogram -o hist_count,hist_count_ranges,hist_percent,hist_percent_ranges lin
$DM stats report --histogram --noheadings -o hist_count,hist_count_ranges,hist_percent_bounds,hist_bounds lin
$DM stats report -o all -S 'obj_type=area || (region_id=4 && obj_type=region)' lin
$DM stats report -o interval,interval_ns,throughput,service_time,util,queue_size --count 1 --interval 3 lin
$DM stats report bare
$DM stats report nonexistent
$DM stats nonsense
$DM stats version
$DM stats

$DM stats print --regionid 1 lin three
$DM stats print --allregions lin
$DM stats print lin
$DM stats print --regionid 0 --clear lin
$DM stats print --allregions
$DM stats clear --regionid 0 lin
$DM stats clear --allregions lin
$DM stats clear --regionid 1 lin
$DM stats clear --regionid 99 lin
$DM stats clear lin
$DM stats ungroup lin
$DM stats ungroup --groupid 4 lin; $DM message lin 0 @stats_list; $DM stats group --regions 4,5 lin
$DM stats ungroup --groupid 4; $DM stats list lin
$DM stats delete --regionid 1 three; $DM message three 0 @stats_list; $DM stats list three
$DM stats delete --regionid 0 three; $DM message three 0 @stats_list; $DM stats list three
$DM stats delete --regionid 99 lin
$DM stats delete --regionid 0 bare
$DM stats delete --groupid 99 lin
$DM stats delete --groupid 2 lin
$DM stats delete --groupid 4 lin; $DM message lin 0 @stats_list
$DM stats delete lin
$DM stats delete --regionid 1 --programid other lin
$DM stats delete --allregions --alldevices; $DM stats list
$DM stats delete --allregions --allprograms --alldevices; $DM stats list --allprograms
$DM stats create --alldevices; $DM stats list; $DM stats delete --allregions --alldevices

$DM setgeometry lin 10 10 10 0
$DM setgeometry lin 1 1 1 5
$DM setgeometry lin 1 1 1
$DM setgeometry lin a b c d
$DM wait lin 7
$DM wait
$DM wait nonexistent
$DM wait -v lin 9

$DM rename lin lin2
$DM rename lin2 with-uuid
$DM rename lin2 a/b
$DM rename lin2 ''
$DM rename nonexistent x
$DM rename
$DM rename lin2 --setuuid DMCORE-5678
$DM rename lin2 --setuuid DMCORE-9999
$DM rename bare --setuuid DMCORE-5678
$DM rename -u DMCORE-5678 lin3
$DM info -c -o name,uuid,events lin2
$DM rename lin2 lin

$DM create 'odd name' --table '0 8 zero'
$DM create 'ödd;,\' -u 'u ü' --table '0 8 zero'
$DM create 'as\x20hex' --table '0 8 zero'
$DM create 'mixed \x20' --table '0 8 zero'
$DM create 'twice\x5cx20' --table '0 8 zero'
$DM ls
$DM ls --manglename none
$DM info 'odd name'
$DM info 'odd\x20name'
$DM info --manglename hex 'odd name'
$DM info --manglename none 'odd\x20name'
$DM info -c -o name,mangled_name,unmangled_name,uuid,mangled_uuid,unmangled_uuid
$DM info -c -o name,mangled_name,unmangled_name --manglename none
$DM info -c -o name,mangled_name,unmangled_name --manglename hex
$DM table --concise 'ödd;,\'
$DM mangle
$DM mangle --manglename none 'odd name'
$DM mangle 'odd name'
$DM mangle --manglename hex 'odd name'
$DM rename 'odd name' 'odder name'
$DM create --manglename none 'raw&name' --table '0 8 zero'; $DM remove --manglename none 'raw&name'
DM_DEFAULT_NAME_MANGLING_MODE=none $DM ls
$DM --manglename nonsense ls
$DM remove 'odder name' 'as\x20hex' 'ödd;,\'

$DM ls --tree

# format
$DM ls --tree -o ascii
$DM ls --tree -o utf,nodevice
$DM ls --tree -o vt100,inverted
$DM ls --tree -o inverted,blkdevname
$DM ls --tree -o compact,ascii
$DM ls --tree -o compact,inverted,utf
$DM ls --tree -o active,rw,open,uuid
$DM ls --tree -o dev,nonsense
LC_ALL=C $DM ls --tree
LC_ALL=C.UTF-8 $DM ls --tree

$DM create top --table "0 64 linear /dev/mapper/three 0"; $DM create top2 --table '0 64 linear /dev/mapper/top 0'; $DM ls --tree -o utf
$DM ls --tree -o compact,utf
$DM ls --tree -o notrunc,inverted,uuid
$DM create aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa --table '0 8 linear /dev/mapper/top2 0'; $DM ls --tree -o ascii; $DM ls --tree -o utf
$DM remove aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
$DM info -c -o name,device_count,devs_used,device_ref_count,names_using_dev,devnos_using_dev
$DM remove three
$DM remove three --deferred; $DM info three; $DM info -c -o name,open three
$DM remove top2 top; $DM info three

# format
$DM splitname vg-lv
$DM splitname vg--a-lv--b-layer
$DM splitname vg-lv LVM
$DM splitname vg-lv CRYPT
$DM splitname -c --noheadings -o vg_name,lv_name vg-lv
$DM splitname --nameprefixes -o lv_layer vg-lv-x
$DM splitname -o splitname_vg_name vg-lv-x 2> /dev/null
$DM splitname -c -o splitname_all vg-lv-x
$DM splitname -o +subsystem vg-lv-
$DM splitname

$DM create --concise 'c1,,,,0 8 zero'
$DM create --concise 'c2,DMCORE-c2,90,ro,0 8 zero,8 8 error; c3,,,rw,0 8 error'
$DM create --concise < $T/two
$DM create --concise 'c6,,,0 8 zero'
$DM create --concise 'c6,,,xx,0 8 zero'
$DM create --concise 'c6\'
$DM create --concise 'c\,7,,,,0 8 zero'
$DM create --concise a b
$DM create --concise -u x 'c8,,,,0 8 zero'
$DM table --concise | $DM create --concise
$DM table --concise > $T/concise; $DM remove c1 c2 c3 c4; $DM table --concise > $T/fewer

$DM create key --table "0 64 crypt aes-xts-plain64 $K 0 $A 0"
$DM create nokey --table "0 64 crypt aes-xts-plain64 :32:logon:dmcore:nothing 0 $A 0"
$DM table key
$DM table --showkeys key
$DM table --concise --showkeys key
$DM table -S 'name=key'
$DM status key
$DM suspend key; $DM message key 0 key wipe; $DM message key 0 key set $L; $DM resume key; $DM table --showkeys key
$DM message key 0 key set 00
$DM create sum --table "0 64 integrity $B 0 4 J 1 internal_hash:hmac(sha256):$M"
$DM create sum --table "0 64 integrity $B 0 4 J 2 internal_hash:hmac(sha256):$M journal_mac:hmac(sha256):$N"
$DM table sum
$DM table --showkeys sum
$DM remove key sum

$DM wipe_table striped; $DM table striped
$DM wipe_table nonexistent
$DM wipe_table
$DM remove -f ro; $DM info ro
exec 3< /dev/mapper/striped; $DM remove striped; exec 3<&-; $DM remove --retry striped
exec 3< /dev/mapper/ahead; $DM remove -f --deferred ahead; $DM info ahead; exec 3<&-; $DM info ahead
$DM remove nonexistent
$DM remove
$DM remove /dev/mapper/ahead2
$DM remove -u DMCORE-none
$DM remove -j 254 -m 77; rm -f /dev/mapper/minor
$DM remove -S 'name=~^ahead'
$DM remove 'c,7'; $DM mknodes
rm -f /dev/mapper/lin; $DM mknodes lin; test -b /dev/mapper/lin
rm -f /dev/mapper/lin; $DM mknodes; test -b /dev/mapper/lin
touch /dev/mapper/stale; $DM mknodes; ls /dev/mapper/stale
$DM mknodes nonexistent

$DM udevcookies
$DM udevcreatecookie
$DM udevreleasecookie
$DM udevreleasecookie 0x0d4d1234
$DM udevreleasecookie nonsense

# format
$DM udevflags 0x00ff1234
$DM udevflags 4294901761
$DM udevflags 0

$DM udevcomplete 0x00401234
$DM udevcomplete 0
$DM udevcomplete 0x00400000
$DM udevcomplete_all -y
echo n | $DM udevcomplete_all
$DM udevcomplete_all x

# format
$DM
$DM nonsense > /dev/null 2>&1
$DM --nonsense
$DM info --no > /dev/null 2>&1
$DM info --count
$DM info --force=x
$DM info -x
$DM info --noheadi -c -o name
$DM help 2> /dev/null
$DM -h 2> /dev/null
$DM info -h 2> /dev/null
$DM --help -c 2> /dev/null
$DM -- info -c
$DM info -- -c
$DM info --count -1
$DM info --interval 0
$DM info -c -o name --interval x

$DM remove_all
$DM ls
$DM remove_all --force
$DM ls
