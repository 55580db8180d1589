//! The devices: from the agent's report, which alone knows hooks and modes, and
//! from the programs' own table, where the report is missing or had no room.

use nat_common::abi::{self, DEVICE_EXCLUSIVE, DEVICE_OUTSIDE};

use super::model::Device;
use crate::report::{DeviceReport, Role};

/// All devices, outside ones first.
pub fn join(report: &[DeviceReport], table: &[(u32, abi::Device)]) -> Vec<Device> {
    let unreported = table
        .iter()
        .filter(|(ifindex, _)| report.iter().all(|device| device.ifindex != *ifindex));
    let unreported = unreported.map(|(ifindex, device)| unreported_device(*ifindex, device.flags));
    let mut devices: Vec<Device> = report.iter().map(reported).chain(unreported).collect();
    devices.sort_by(|a, b| (a.role, &a.name, a.ifindex).cmp(&(b.role, &b.name, b.ifindex)));
    devices
}

fn reported(device: &DeviceReport) -> Device {
    Device {
        name: Some(device.name.clone()),
        ifindex: device.ifindex,
        role: device.role,
        hooks: device.hooks.clone(),
        note: device.note.clone(),
    }
}

fn unreported_device(ifindex: u32, flags: u32) -> Device {
    let role = if flags & DEVICE_OUTSIDE != 0 {
        Role::Outside
    } else if flags & DEVICE_EXCLUSIVE != 0 {
        Role::Client
    } else {
        Role::Inside
    };
    Device {
        name: None,
        ifindex,
        role,
        hooks: Vec::new(),
        note: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_counts_and_the_table_fills_its_gaps() {
        let report = [DeviceReport {
            name: "eth0".into(),
            ifindex: 2,
            ..DeviceReport::default()
        }];
        let entry = |flags| abi::Device {
            flags,
            ..abi::Device::default()
        };
        let table = [
            (7, entry(DEVICE_EXCLUSIVE)),
            (3, entry(0)),
            (2, entry(DEVICE_OUTSIDE)),
            (4, entry(DEVICE_OUTSIDE)),
        ];
        let devices = join(&report, &table);
        let found: Vec<_> = devices
            .iter()
            .map(|device| (device.ifindex, device.role))
            .collect();
        assert_eq!(
            found,
            [
                (4, Role::Outside),
                (2, Role::Outside),
                (3, Role::Inside),
                (7, Role::Client)
            ]
        );
        assert_eq!(devices[1].name.as_deref(), Some("eth0"));
    }
}
