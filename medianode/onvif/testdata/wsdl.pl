#!/usr/bin/perl
# Prints the requests of ONVIF's device and media service (ver10) as the classes
# make them that SOAP::WSDL generated from the official WSDL, and their actions.
# They are in Debian's zoneminder package, of which nothing need be installed:
#
#   apt-get install libsoap-wsdl-perl
#   apt-get download zoneminder && dpkg-deb -x zoneminder_*.deb zm
#   perl -Izm/usr/share/perl5 wsdl.pl zm/usr/share/perl5 >wsdl.txt
#
# Each line: the action, a tab, the SOAP body's child.
use strict;
use warnings;

my $root = shift or die "usage: wsdl.pl DIRECTORY\n";
my @requests = (
    ['Device', 'GetSystemDateAndTime', {}],
    ['Device', 'GetServices',          { IncludeCapability => 'false' }],
    ['Device', 'GetCapabilities',      { Category          => 'Media' }],
    ['Media',  'GetProfiles',          {}],
    ['Media',  'GetStreamUri', {
        StreamSetup  => { Stream => 'RTP-Unicast', Transport => { Protocol => 'RTSP' } },
        ProfileToken => 'Profile_1 & <main>',
    }],
    ['Media', 'SetSynchronizationPoint', { ProfileToken => 'Profile_1 & <main>' }],
);
for (@requests) {
    my ($service, $name, $values) = @$_;
    my $class = "ONVIF::${service}::Elements::$name";
    eval "require $class" or die $@;
    my ($action) = map { /soap_action => '([^']*\/$name)'/ } map {
        open my $in, '<', $_ or die "$_: $!\n";
        <$in>;
    } glob "$root/ONVIF/$service/Interfaces/*/*.pm";
    my $text = $class->new($values)->serialize_qualified;
    $text =~ s/\s*\n\s*/ /g;
    print "$action\t$text\n";
}
